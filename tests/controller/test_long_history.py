"""Years of old jobs cost a tick nothing: whatever it asks the database, it follows an index."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lab import Lab
from sqlalchemy import event

from prompttuner.db.queries import jobs
from prompttuner.states import JobState

WHOLE_TABLE = re.compile(r"SCAN (jobs|events|leases|allocations|requests)$")
"""As SQLite explains reading a table from its first row to its last."""


@contextmanager
def statements(lab: Lab) -> Iterator[set[tuple[str, Any]]]:
    """All that is asked meanwhile, with its parameters."""
    asked: set[tuple[str, Any]] = set()

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE")):
            asked.add((statement, tuple(parameters[0] if isinstance(parameters, list) else parameters)))

    event.listen(lab.store.engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(lab.store.engine, "before_cursor_execute", note)


def read_through(lab: Lab, asked: set[tuple[str, Any]]) -> list[str]:
    """Those that read a whole table."""
    connection = sqlite3.connect(lab.settings.home / "state.db")
    found = []
    for statement, parameters in asked:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        if any(WHOLE_TABLE.match(step) for step in plan):
            found.append(f"{statement} -> {plan}")
    connection.close()
    return found


def test_a_tick_reads_through_no_table_that_grows(lab: Lab) -> None:
    for ita in (10, 20, 150):
        lab.submit(ita=ita, deadline_s=100.0)
    with statements(lab) as asked:
        lab.run(60)
        lab.site.time += 7200
        lab.tick()
    assert len(asked) > 30
    assert read_through(lab, asked) == []
    assert len(read_through(lab, {("SELECT * FROM jobs WHERE name = ?", ("x",))})) == 1


def test_lists_of_jobs_read_through_no_table_that_grows(lab: Lab) -> None:
    names = [lab.submit(ita=10) for _ in range(3)]
    lab.run(60)
    with statements(lab) as asked:
        done = lab.store.query(lambda session: jobs.newest(session, 2, list(JobState)))
        recent = lab.store.query(lambda session: jobs.newest(session, 2, [JobState.QUEUED], lab.site.time - 3600))
        old = lab.store.query(lambda session: jobs.newest(session, 2, [JobState.QUEUED], lab.site.time))
    assert [job.id for job in done] == [job.id for job in recent] == names[:0:-1] and old == []
    assert len(asked) == 3 and read_through(lab, asked) == []
