"""What the database costs a tick: reading everything it needs, and writing what it learnt, at 100 and 10,000 jobs.

python benchmarks/store.py [--quick] [--json] [--database URL]

Without ``--database`` a new SQLite file in a temporary folder is used; a Postgres database must be empty. Times are the
least of several runs: CPU seconds of this process and wall-clock seconds (which hold the waiting for disk or server).
The write is the progress of all active jobs in one transaction, as a tick does it: rows loaded, assigned and flushed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import event, select
from sqlalchemy.orm import Session

from prompttuner.db import Change, Ownership, Store
from prompttuner.db.queries import allocations, jobs
from prompttuner.db.queries.live import live_rows
from prompttuner.db.tables.models import Job

SPEC = {"model": "m" * 40, "train": {"path": "/data/train.jsonl", "sha256": "0" * 64}, "target": "loss<=1.0", "seed": 1}


def fill(store: Store, mine: Ownership, known: int, active: int, placeholders: int) -> None:
    """``known`` jobs, of which ``active`` have not ended, and live allocations."""
    have = store.query(lambda session: sum(jobs.count_by_state(session).values()))
    ids = [f"j{number}" for number in range(have, known)]
    rows = [{"id": name, "spec": SPEC, "pool": "p", "model": "m", "deadline_at": 1e9, "iters_mid": 9.0} for name in ids]
    live = [{"uuid": f"u{number}", "pool": "p", "model": "m", "status": {"beat": 1}} for number in range(placeholders)]
    store.transact(mine, lambda session: jobs.add(session, rows, 1.0, "benchmark"))
    present = {row.uuid for row in store.query(allocations.load_live)}
    fresh = [row for row in live if row["uuid"] not in present]
    store.transact(mine, lambda session: allocations.add(session, fresh, 1.0, "benchmark"))
    surplus = [row.id for row in store.query(jobs.load_active)][active:]
    ends = [Change(name, "cancelled", "benchmark") for name in surplus]
    store.transact(mine, lambda session: jobs.change(session, ends, 2.0))


def read_all(session: Session) -> int:
    """What a tick reads."""
    rows = live_rows(session)
    return len(rows.jobs) + len(rows.allocations)


def assign_all(session: Session, step: int) -> None:
    """The progress of all active jobs."""
    for job in session.scalars(select(Job).where(Job.state.in_(jobs.ACTIVE_STATES))):
        job.step, job.train_loss = step, 1.0 / step


def least(run: Callable[[int], Any], repeats: int) -> tuple[float, float]:
    """(CPU, wall-clock) milliseconds of the best of several runs, which get a number of their own."""
    spent = []
    for number in range(1, repeats + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        run(number)
        spent.append((time.process_time() - cpu, time.perf_counter() - wall))
    return 1000 * min(cpu for cpu, _ in spent), 1000 * min(wall for _, wall in spent)


def count_statements(store: Store, run: Callable[[], Any]) -> int:
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(store.engine, "before_cursor_execute", note)
    run()
    event.remove(store.engine, "before_cursor_execute", note)
    return len(sent)


def measure(store: Store, mine: Ownership, shape: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    known, active, placeholders = shape
    fill(store, mine, known, active, placeholders)
    ids = [row.id for row in store.query(jobs.load_active)]
    read_cpu, read_wall = least(lambda _: store.query(read_all), repeats)
    cpu, wall = least(lambda step: store.transact(mine, lambda session: assign_all(session, step)), repeats)
    return {
        "known": known,
        "active": len(ids),
        "allocations": placeholders,
        "read_statements": count_statements(store, lambda: store.query(read_all)),
        "write_statements": count_statements(
            store, lambda: store.transact(mine, lambda session: assign_all(session, 999))
        ),
        "read_cpu_ms": round(read_cpu, 1),
        "read_wall_ms": round(read_wall, 1),
        "write_cpu_ms": round(cpu, 1),
        "write_wall_ms": round(wall, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--database", help="an empty database: a path or postgresql:// URL")
    given = parser.parse_args()
    repeats = 3 if given.quick else 9
    with tempfile.TemporaryDirectory() as folder:
        url = given.database or str(Path(folder) / "state.db")
        with Store.open(url, create=True, notes_dir=Path(folder)) as store:
            mine = store.acquire(ttl_s=3600.0)
            shapes = [(100, 100, 100), (10_000, 100, 1000), (20_000, 10_000, 1000)]
            rows = [measure(store, mine, shape, repeats) for shape in shapes]
            kind = store.engine.dialect.name
    result = {
        "command": "python benchmarks/store.py --json",
        "database": kind,
        "cores": os.cpu_count(),
        "rows": rows,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print("  ".join(f"{name:>18}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>18}" for value in row.values()))
    print(f"{kind}: peak memory {result['peak_memory_mb']} MB")
    if given.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
