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
from watched_controller import TickWatch, command

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
INTO_TICK_S = 0.1
"""The controller is killed within so much of a tick's begin; ticks take longer than that now and then."""
AIMS = 20
"""Attempts to kill it within a tick, before it is killed between two."""
TICK_PATIENCE_S = 60.0
"""For the next tick: a controller that was just killed has to start and to wait for its ownership."""


class Chaos:
    """Kills things, aims at ticks and running leases, and knows what was hit."""

    def __init__(self, user: SlurmUser, watch: TickWatch, database: PostgresServer, jobs: list[str]) -> None:
        self.user, self.watch, self.database, self.jobs = user, watch, database, jobs
        self.random = random.Random(SEED)
        self.faults: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        """Of these faults: in the midst of a tick, on a running lease, on neither."""
        self.workers_killed: set[str] = set()

    def strike(self) -> None:
        """One fault, of the first kind in random order that finds something to hit; none if nothing does."""
        kinds: list[Callable[[], str | None]] = [
            self.controller, self.controller, self.agent, self.worker, self.slurmctld, self.slurmd, self.postgres,
            self.preemption,
        ]  # fmt: skip
        for fault in self.random.sample(kinds, len(kinds)):
            if (hit := fault()) is not None:
                self.faults[fault.__name__] += 1
                self.hits[hit] += 1
                return

    def controller(self) -> str:
        """SIGKILL the controller some way into a tick."""
        for _ in range(AIMS):
            if self.watch.wait_for_tick(TICK_PATIENCE_S):
                time.sleep(self.random.uniform(0.0, INTO_TICK_S))
                if self.watch.in_tick():
                    break
        self.user.kill()
        hit = "tick" if self.watch.in_tick() else "neither"
        self.user.start()
        return hit

    def agent(self) -> str | None:
        """SIGKILL an agent that has a lease: no farewell, its worker is left to notice."""
        leased = [pid for pid in self._leased().values() if _runs(pid, b"submitit")]
        return "lease" if leased and _kill(self.random.choice(leased)) else None

    def worker(self) -> str | None:
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
            return None
        job, pid = self.random.choice(found)
        self.workers_killed.add(job)
        return "lease" if _kill(pid) else None

    def slurmctld(self) -> str:
        """Away for a second or two."""
        return self._away(self.user.cluster.restart_slurmctld)

    def postgres(self) -> str:
        """Its processes end at once, as in a crash."""
        return self._away(lambda: self.database.restart(signal.SIGQUIT))

    def slurmd(self) -> str | None:
        """A node's power cut, with a lease on it."""
        nodes = self._leased_nodes()
        if not nodes:
            return None
        node = self.random.choice(nodes)
        self.user.cluster.kill_node(node)
        self.user.cluster.set_node(node, "down")
        self.user.cluster.return_node(node)
        return "lease"

    def preemption(self) -> str | None:
        """Slurm takes a node with a lease on it for a job of higher priority."""
        nodes = self._leased_nodes()
        if not nodes:
            return None
        node = self.random.choice(nodes)
        self.user.cluster.run(
            "sbatch", "-p", "gpu", "-w", node, "--gpus-per-node=2", "-o", "/dev/null", "--wrap", "sleep 3"
        )
        return "lease"

    def _away(self, restart: Callable[[], None]) -> str:
        """Restart a server; whether that hit a tick."""
        in_tick, before = self.watch.in_tick(), self.watch.begun()
        restart()
        return "tick" if in_tick or self.watch.begun() > before else "neither"

    def _leased(self) -> dict[str, int]:
        """Process ids of agents that have a lease, by uuid."""
        found = {}
        for path in (self.user.settings.spool_dir / "agents").glob("*/status.json"):
            status = read_json(path)
            if isinstance(status, dict) and status.get("state") == "busy" and not (path.parent / "exit.json").exists():
                found[path.parent.name] = int(status["pid"])
        return found

    def _leased_nodes(self) -> list[str]:
        """Nodes on which such an agent runs."""
        leased = self._leased()
        rows = self.user.cluster.run("squeue", "-h", "-t", "RUNNING", "-o", "%j %N", check=False).splitlines()
        return sorted({node for name, node in map(str.split, rows) if name.removeprefix("pt-") in leased})


def test_all_jobs_end_right_whatever_is_killed(slurm: Cluster, own_postgres: PostgresServer, tmp_path: Path) -> None:
    user = SlurmUser(
        slurm, tmp_path / "home", database=own_postgres.url(), policy="prompttuner", max_gpus=4, idle_limit_s=20,
        suspect_s=10, **{"slurm.partition": "spare"},
    )  # fmt: skip
    watch = TickWatch(tmp_path / "ticks")
    user.program = command(watch)
    user.start()
    try:
        jobs = [user.submit(f"real{index}", REAL_ITERATIONS) for index in range(2)]
        jobs += [user.submit_paced(f"paced{index}", ITERATIONS, STEP_S) for index in range(JOBS - 2)]
        user.until(lambda: any(user.state(job)["state"] == "running" for job in jobs), "the first job runs")
        chaos = Chaos(user, watch, own_postgres, jobs)
        until = time.monotonic() + PATIENCE_S
        while sum(chaos.faults.values()) < FAULTS:
            assert time.monotonic() < until, f"{chaos.faults}\n{user.report()}"
            if user.unfinished(jobs) < LEAST_JOBS:
                jobs.append(user.submit_paced(f"paced{len(jobs)}", ITERATIONS, STEP_S))
            time.sleep(chaos.random.uniform(*GAP_S))
            chaos.strike()
        assert 2 * chaos.hits["neither"] < FAULTS, f"most faults are to hit a tick or a lease: {chaos.hits}"
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
            chaos_faults=sum(chaos.faults.values()),
            **{f"chaos_{kind}": n for kind, n in chaos.faults.items()},
            **{f"chaos_hit_{what}": n for what, n in chaos.hits.items()},
        )
    finally:
        user.stop()


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
