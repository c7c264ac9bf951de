"""Jobs on the real cluster with the state in a real Postgres, while everything that can die is killed at random.

``PROMPTTUNER_CHAOS_JOBS`` and ``PROMPTTUNER_CHAOS_FAULTS`` make it longer (``make soak``).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from postgres import PostgresServer
from slurm_cluster import Cluster
from slurm_site import SlurmUser
from tally import tally

from prompttuner.files import read_json

JOBS = int(os.environ.get("PROMPTTUNER_CHAOS_JOBS", "12"))
FAULTS = int(os.environ.get("PROMPTTUNER_CHAOS_FAULTS", "15"))
SEED = int(os.environ.get("PROMPTTUNER_CHAOS_SEED", "1"))

PATIENCE_S = 300 + 60 * FAULTS
"""For all faults; CI machines are slow and noisy."""

pytestmark = [pytest.mark.slurm, pytest.mark.postgres, pytest.mark.timeout(1500 + PATIENCE_S)]

ITERATIONS, REAL_ITERATIONS = 200, 60
LEAST_JOBS = 4
"""So many are there to be hit until the last fault; more are submitted if need be."""
STEP_S = 0.1
GAP_S = (1.0, 4.0)
"""Between two faults."""


class Chaos:
    """Kills things, and knows whether a lease or a tick was hit."""

    def __init__(self, user: SlurmUser, database: PostgresServer, jobs: list[str]) -> None:
        self.user, self.database, self.jobs = user, database, jobs
        self.random = random.Random(SEED)
        self.hits: Counter[str] = Counter()
        self.missed = 0
        self.workers_killed: set[str] = set()

    def strike(self) -> None:
        """One fault; counted as a miss when nothing was there to hit."""
        kinds: list[tuple[str, Callable[[], bool]]] = [
            ("controller", self.controller),
            ("controller", self.controller),
            ("agent", self.agent),
            ("worker", self.worker),
            ("slurmctld", self.slurmctld),
            ("slurmd", self.slurmd),
            ("postgres", self.postgres),
            ("preemption", self.preemption),
        ]
        name, fault = self.random.choice(kinds)
        if fault():
            self.hits[name] += 1
        else:
            self.missed += 1

    def controller(self) -> bool:
        self.user.kill()
        self.user.start()
        return True

    def agent(self) -> bool:
        """SIGKILL an agent that has a lease: no farewell, its worker is left to notice."""
        leased = [s for s in self._statuses() if s.get("state") == "busy" and _runs(int(s["pid"]), b"submitit")]
        return bool(leased) and _kill(int(self.random.choice(leased)["pid"]))

    def worker(self) -> bool:
        """SIGKILL the worker of a job that was spared so far: a job whose worker dies again and again is given up."""
        found = [
            (job, int(progress["pid"]))
            for job in self.jobs
            if job not in self.workers_killed
            for path in (self.user.settings.spool_dir / "jobs" / job).glob("g*/*/progress.json")
            if (progress := read_json(path) or {}).get("phase") == "running"
            and _runs(int(progress.get("pid") or 0), b"zygote")
        ]
        if not found:
            return False
        job, pid = self.random.choice(found)
        self.workers_killed.add(job)
        return _kill(pid)

    def slurmctld(self) -> bool:
        self.user.cluster.restart_slurmctld()
        return True

    def slurmd(self) -> bool:
        node = self.random.choice(self.user.cluster.shape.node_names)
        busy = node in self.user.cluster.run("squeue", "-h", "-t", "RUNNING", "-o", "%N", check=False)
        self.user.cluster.kill_node(node)
        self.user.cluster.set_node(node, "down")
        self.user.cluster.return_node(node)
        return busy

    def postgres(self) -> bool:
        self.database.restart(signal.SIGQUIT)
        return True

    def preemption(self) -> bool:
        before = self.user.cluster.run("squeue", "-h", "-t", "RUNNING", "-o", "%N", check=False).split()
        if not before:
            return False
        node = self.random.choice(before)
        self.user.cluster.run(
            "sbatch", "-p", "gpu", "-w", node, "--gpus-per-node=2", "-o", "/dev/null", "--wrap", "sleep 3"
        )
        return True

    def _statuses(self) -> list[dict[str, object]]:
        paths = (self.user.settings.spool_dir / "agents").glob("*/status.json")
        return [value for path in paths if isinstance(value := read_json(path), dict) and not _ended(path)]


def test_all_jobs_end_right_whatever_is_killed(slurm: Cluster, own_postgres: PostgresServer, tmp_path: Path) -> None:
    user = SlurmUser(
        slurm, tmp_path / "home", database=own_postgres.url(), policy="prompttuner", max_gpus=4, idle_limit_s=20,
        suspect_s=10, **{"slurm.partition": "spare"},
    )  # fmt: skip
    user.start()
    try:
        jobs = [user.submit(f"real{index}", REAL_ITERATIONS) for index in range(2)]
        jobs += [user.submit_paced(f"paced{index}", ITERATIONS, STEP_S) for index in range(JOBS - 2)]
        user.until(lambda: any(user.state(job)["state"] == "running" for job in jobs), "the first job runs")
        chaos = Chaos(user, own_postgres, jobs)
        until = time.monotonic() + PATIENCE_S
        while sum(chaos.hits.values()) < FAULTS:
            assert time.monotonic() < until, f"{chaos.hits}, {chaos.missed} misses\n{user.report()}"
            if user.unfinished(jobs) < LEAST_JOBS:
                jobs.append(user.submit_paced(f"paced{len(jobs)}", ITERATIONS, STEP_S))
            time.sleep(chaos.random.uniform(*GAP_S))
            chaos.strike()
        user.until(lambda: not user.unfinished(jobs), "all jobs have ended", 400 + 20 * JOBS)
        ended = user.wait(*jobs)
        assert [job["state"] for job in ended] == ["exhausted"] * 2 + ["done"] * (len(jobs) - 2), user.events()[-40:]
        assert [job["step"] for job in ended] == [REAL_ITERATIONS] * 2 + [ITERATIONS] * (len(jobs) - 2)
        assert all((user.settings.spool_dir / "jobs" / job / "result" / "result.json").is_file() for job in jobs)
        user.until(lambda: not user.queue(), "no allocation is left after the idle limit")
        starts = [sum(event["event"] == "start" for event in events) for events in user.journals().values()]
        assert set(starts) == {1}, "a uuid was admitted twice"
        assert all(len(states) == 1 for states in user.accounted().values()), "a uuid was submitted twice"
        tally(
            chaos_jobs=len(jobs),
            chaos_faults=sum(chaos.hits.values()),
            **{f"chaos_{k}": n for k, n in chaos.hits.items()},
        )
    finally:
        user.stop()


def _ended(status: Path) -> bool:
    return (status.parent / "exit.json").exists()


def _runs(pid: int, what: bytes) -> bool:
    """Whether this process still is what its file says: those of killed ones stay."""
    try:
        return pid > 0 and what in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
