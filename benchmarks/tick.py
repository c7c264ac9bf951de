"""Cost of a controller tick with nothing to do, by number of known jobs: seconds, statements, memory.

    python benchmarks/tick.py [--quick] [--json]

A tenth of the known jobs runs, one agent each, on a fake backend that answers at once (named so): what is measured is
the controller, its database (SQLite) and its spool, not Slurm. Named alternative in the same run: a tenth of the jobs.
Three kinds of tick: idle (all is as it was), beats (a fifth of the agents have sent a heartbeat, as in every second of
a real cluster) and all (every fact is compared with its row, as every five seconds).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import event

from prompttuner.config import Settings
from prompttuner.controller.plan.pools import pool_of
from prompttuner.controller.resources import Clock, Resources, State, Warnings
from prompttuner.controller.tick import Controller
from prompttuner.db import Store
from prompttuner.db.queries.bulk import insert_rows, table_of
from prompttuner.db.tables.models import Allocation, Job, Lease
from prompttuner.files import make_private_dir, read_json, write_json
from prompttuner.policy import get
from prompttuner.protocol.agents import AgentStatus
from prompttuner.protocol.jobs import Membership
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.slurm.backend import AllocationRequest, Seen
from prompttuner.slurm.spool import Spool
from prompttuner.slurm.words import Native
from prompttuner.worker.membership import member_dir, propose

SPEC: dict[str, Any] = {
    "model": "/m",
    "model_name": "tiny",
    "max_iterations": 10**6,
    "eval_every": 10,
    "batch_size": 16,
    "target": {"metric": "loss", "op": "<=", "value": 0.1},
    "initial_prompt": "vocab",
}
POOL = pool_of(ResolvedSpec.expect(SPEC))


class FakeBackend:
    """Says that everything runs."""

    name = "fake"
    calls = 0

    def submit(self, _request: AllocationRequest) -> str:
        raise AssertionError("nothing is to be submitted")

    def cancel(self, _native_ids: Sequence[str]) -> None:
        raise AssertionError("nothing is to be cancelled")

    def observe(self, known: Sequence[tuple[str, str | None]]) -> dict[str, Seen]:
        self.calls += 1
        return {uuid: Seen(Native.RUNNING, native, "RUNNING") for uuid, native in known}


def build(home: Path, known: int) -> Controller:
    """A state with ``known`` jobs, a tenth of them running."""
    settings = Settings(home=home, policy="edf", local={"slots": max(2, known // 10)}, squeue_min_s=0.0)
    settings.make_home()
    spool = Spool(settings.spool_dir).ensure()
    store = Store.open(settings.database_url, create=True)
    ownership = store.acquire(ttl_s=600.0)
    now = time.time()
    running = known // 10
    jobs = [_job(i, i < running, now) for i in range(known)]
    allocations = [_allocation(i, now) for i in range(running)]
    leases = [
        {"job_id": f"j{i:09}", "allocation": f"a{i:09}", "generation": 1, "rank": 0, "granted_at": now, "steps": 0}
        for i in range(running)
    ]

    def fill(session: Any) -> None:
        for model, rows in ((Job, jobs), (Allocation, allocations), (Lease, leases)):
            insert_rows(session, table_of(model), rows)

    store.transact(ownership, fill)
    for i in range(running):
        folder = make_private_dir(spool.job(f"j{i:09}"))
        propose(folder, Membership(1, (f"a{i:09}",)))
        write_json(member_dir(folder, 1, f"a{i:09}") / "progress.json", {"step": 5, "phase": "running"})
        status = AgentStatus(beat=1, instance="i", state="busy", model="/m", job=f"j{i:09}", generation=1)
        write_json(make_private_dir(spool.agent(f"a{i:09}")) / "status.json", status.to_json())
    # A clock that stands still: what is done now and then only (beats, notes) is not what an idle tick costs.
    clock = Clock(lambda: now, lambda: 0.0)
    resources = Resources(settings, spool, State(store, ownership), clock, Warnings(clock.steady))
    return Controller(resources, FakeBackend(), get("edf"))


def _job(i: int, runs: bool, now: float) -> dict[str, Any]:
    return {
        "id": f"j{i:09}",
        "state": "running" if runs else "done",
        "spec": SPEC,
        "pool": POOL.key,
        "model": "/m",
        "submitted_at": now - 3600 + i / 1000,
        "deadline_at": now + 10**6,
        "max_gpus": 1,
        "generation": 1,
        "plan_generation": 1,
        "members": [f"a{i:09}"] if runs else [],
        "history": [[now, 1]],
        "lookup_done": True,
        "step": 5,
        "first_step_at": now,
        "finished_at": None if runs else now,
        "ita": None if runs else 100,
        "state_since": now,
        "updated_at": now,
    }


def _allocation(i: int, now: float) -> dict[str, Any]:
    return {
        "uuid": f"a{i:09}",
        "state": "busy",
        "pool": POOL.key,
        "model": "/m",
        "place": POOL.place_record().to_json(),
        "native_id": str(i),
        "job_id": f"j{i:09}",
        "created_at": now,
        "started_at": now,
        "warm_at": now,
        "admitted": True,
        "state_since": now,
        "updated_at": now,
    }


def beat(controller: Controller, turn: int) -> None:
    """A fifth of the agents send a heartbeat."""
    for folder in sorted(controller.resources.spool.agents.iterdir())[turn % 5 :: 5]:
        file = folder / AgentStatus.FILE
        write_json(file, read_json(file) | {"beat": turn + 2}, durable=False)


def look_at_all(controller: Controller, _turn: int) -> None:
    controller.observer.look_at_all()


KINDS: dict[str, Callable[[Controller, int], None]] = {"idle": lambda _c, _t: None, "beats": beat, "all": look_at_all}


def measure(known: int, ticks: int) -> dict[str, Any]:
    """Median seconds of each kind of tick, with the statements and questions to the manager of the last one."""
    row: dict[str, Any] = {"known_jobs": known, "running": known // 10}
    with tempfile.TemporaryDirectory() as folder:
        controller = build(Path(folder) / "home", known)
        for _ in range(2):
            controller.tick()
        statements = 0

        def count(*_: Any) -> None:
            nonlocal statements
            statements += 1

        event.listen(controller.state.store.engine, "before_cursor_execute", count)
        for kind, prepare in KINDS.items():
            seconds, used, asked = [], [], controller.backend.calls  # type: ignore[attr-defined]
            for turn in range(ticks):
                prepare(controller, turn)
                statements = 0
                begin, cpu = time.perf_counter(), time.process_time()
                controller.tick()
                seconds.append(time.perf_counter() - begin)
                used.append(time.process_time() - cpu)
            row[kind] = {
                "tick_s": round(statistics.median(seconds), 4),
                "tick_cpu_s": round(statistics.median(used), 4),
                "least_s": round(min(seconds), 4),
                "statements": statements,
                "manager_calls": (controller.backend.calls - asked) / ticks,  # type: ignore[attr-defined]
            }
        controller.state.store.close()
    row["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 jobs instead of 10,000")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    most = 2_000 if arguments.quick else 10_000
    rows = [measure(most // 10, 5), measure(most, 5 if arguments.quick else 11)]
    print(
        f"{'jobs':>8} {'running':>8} {'tick':>6} {'s':>8} {'least s':>8} {'CPU s':>8} {'SQL':>5} {'calls':>6} {'MB':>6}"
    )
    for row in rows:
        for kind in KINDS:
            cost = row[kind]
            print(
                f"{row['known_jobs']:8} {row['running']:8} {kind:>6} {cost['tick_s']:8.4f} {cost['least_s']:8.4f} "
                f"{cost['tick_cpu_s']:8.4f} {cost['statements']:5} {cost['manager_calls']:6.1f} {row['peak_mb']:6.1f}"
            )
    if arguments.json:
        command = "python benchmarks/tick.py" + (" --quick" if arguments.quick else "") + " --json"
        print(json.dumps({"command": command, "cores": os.cpu_count(), "rows": rows}))


if __name__ == "__main__":
    main()
