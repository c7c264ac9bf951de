"""Controllers killed at any moment: a transaction is there whole or not at all, the next one takes over at once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from prompttuner.db import Store
from prompttuner.db.queries import events
from prompttuner.db.upkeep.integrity import check

PROGRAM = """
import sys
from prompttuner.db import Store
from prompttuner.db.queries import allocations, events, jobs
store = Store.open(sys.argv[1])
mine = store.acquire(ttl_s=3600.0)
print(mine.generation, flush=True)
number = 0
while True:
    number += 1
    name = f"{mine.generation}-{number}"
    def work(session):
        jobs.add(session, [{"id": name, "spec": {"pad": "x" * 3000}, "pool": "p", "model": "m"}], number, "new")
        allocations.add(session, [{"uuid": name, "pool": "p", "model": "m"}], number, "need")
        events.append(session, [events.NewEvent("test.pair", name, job=name)], number)
    store.transact(mine, work)
    print(name, flush=True)
"""


def test_killed_controllers_leave_whole_transactions_and_lose_none_that_was_confirmed(
    url: str, store: Store, tmp_path: Path
) -> None:
    chance = random.Random(7)
    generations: list[int] = []
    confirmed: list[str] = []
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, url], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        generations.append(int(child.stdout.readline()))
        confirmed.append(child.stdout.readline().strip())
        time.sleep(chance.uniform(0.0, 0.3))
        child.send_signal(signal.SIGKILL)
        rest = child.communicate(timeout=60)[0]
        confirmed += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    assert generations == sorted(set(generations))
    mine = store.acquire()
    assert mine.generation > generations[-1]
    with store.read() as session:
        rows = events.read_after(session, limit=100_000)
    by_job: dict[str, list[str]] = {}
    for row in rows:
        by_job.setdefault(row.job_id or row.allocation, []).append(row.kind)
    assert {name.strip() for name in confirmed} <= set(by_job)
    whole = sorted(["job.submitted", "allocation.intent", "test.pair"])
    assert all(sorted(kinds) == whole for kinds in by_job.values())
    assert not [finding for finding in check(store) if finding.serious]
