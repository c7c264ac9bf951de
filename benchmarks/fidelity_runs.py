"""One trace run live on a throw-away Slurm cluster, what was measured there, and its simulation."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from slurm_cluster import Cluster  # noqa: E402 - lies among the tests
from slurm_site import SlurmUser  # noqa: E402

from prompttuner import policy as policies  # noqa: E402
from prompttuner.controller.replay import Replay, schedule, wait_and_submit  # noqa: E402
from prompttuner.db import Store  # noqa: E402
from prompttuner.db import profiles as profile_rows  # noqa: E402
from prompttuner.db.models import Allocation, Job, Lease  # noqa: E402
from prompttuner.policy.estimate import speed_table  # noqa: E402
from prompttuner.policy.snapshot import PoolProfile  # noqa: E402
from prompttuner.report.live import from_database  # noqa: E402
from prompttuner.sim import SimOptions, SimResult, simulate  # noqa: E402
from prompttuner.trace.job import TraceJob  # noqa: E402
from prompttuner.tuning.membership import member_dir  # noqa: E402

__all__ = ["LiveRun", "Site", "Verdict", "alone_s", "plain", "profiles_with", "run_live", "simulated"]

POLICY = "prompttuner"
LEAD_S = 3.0
"""From the controller's start to the trace's begin."""
KINDS = ("queue", "start", "warm", "resize", "switch")


@dataclass(frozen=True, slots=True)
class Site:
    """What live run and simulation have in common."""

    gpus: int = 6
    tick_s: float = 1.0
    poll_s: float = 0.2
    idle_limit_s: float = 60.0
    walltime_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One job's end, in seconds of the trace's clock; inf where it did not reach its target."""

    end_s: float
    met: bool


@dataclass(slots=True)
class LiveRun:
    verdicts: dict[str, Verdict]
    """By the trace's job ids."""
    cost: dict[str, float]
    """GPU-seconds ``busy``, ``start-up``, ``warm-idle`` of allocations held until the last job ended."""
    measured: dict[str, float]
    """Seconds of ``KINDS``, those that occurred; see :func:`_measure`."""
    samples: dict[str, int]
    resizes: int
    allocations: int
    startups: list[dict[str, Any]]
    """Rows of the store's start-up profiles at the end."""
    latest_s: float
    """Largest delay of a submission behind the trace."""


def run_live(
    cluster: Cluster,
    home: Path,
    trace: Sequence[TraceJob],
    profiles: Mapping[str, PoolProfile],
    site: Site,
    known: Sequence[Mapping[str, Any]] = (),
) -> LiveRun:
    """Replay the trace with paced workers through a daemon controller; returns when all jobs have ended.

    ``known``: start-up profiles that the controller has beforehand (rows of an earlier run's ``startups``).
    """
    user = SlurmUser(
        cluster, home, policy=POLICY, max_gpus=site.gpus, tick_s=site.tick_s, poll_s=site.poll_s,
        idle_limit_s=site.idle_limit_s, max_submissions_per_minute=600, **{"slurm.walltime_s": site.walltime_s},
    )  # fmt: skip
    _tell(user, known)
    user.start()
    try:
        entries = schedule(trace, profiles)
        replay = Replay.start(home / "replay", entries, "generated", 1.0, time.time() + LEAD_S - entries[0].at_s)
        late = [0.0]
        wait_and_submit(replay, user.settings, lambda done: late.extend(one.late_s for one in done))
        user.wait(*(entry.job for entry in entries))
    finally:
        user.stop()
        cluster.run("scancel", "-u", cluster.shape.user, check=False)
    with Store.open(user.settings.database_url, read_only=True) as store, store.read() as session:
        return _read(session, replay, user.settings.spool_dir, site, max(late))


def _tell(user: SlurmUser, known: Sequence[Mapping[str, Any]]) -> None:
    """Put start-up profiles into the state before its controller starts."""
    with Store.open(user.settings.database_url, create=True, notes_dir=user.home) as store:
        ownership = store.acquire(ttl_s=5.0)
        store.transact(ownership, lambda session: profile_rows.save_startups(session, known, time.time()))
        store.release(ownership)


def _read(session: Session, replay: Replay, spool: Path, site: Site, latest_s: float) -> LiveRun:
    jobs = {job.id: job for job in session.scalars(select(Job))}
    ended = max(job.finished_at or 0.0 for job in jobs.values())
    data = from_database(session, ended, 0.0, "live")
    bars = {bar.id: bar for bar in data.jobs}
    shift = data.epoch_s - replay.begin
    verdicts = {
        entry.trace_id: Verdict(
            bars[entry.job].end_s + shift if bars[entry.job].state == "ended" else math.inf,
            bars[entry.job].verdict(data.end_s) in {"met", "best effort"},
        )
        for entry in replay.entries
    }
    seen, pools = _measure(session, jobs.values(), spool, site), sorted({job.pool for job in jobs.values()})
    measured = {kind: fmean(values) for kind, values in seen.items() if values}
    startups = [dict(row._mapping) for row in profile_rows.load_startups(session)]
    held = {(row["pool"], row["kind"]) for row in startups}
    models = {job.pool: job.model for job in jobs.values()}
    startups += [
        {"pool": pool, "model": models[pool], "kind": kind, "seconds": seconds, "samples": len(seen[kind]),
         "origin": "benchmarks/fidelity.py"}
        for pool in pools for kind, seconds in measured.items() if (pool, kind) not in held
    ]  # fmt: skip
    allocations = list(session.scalars(select(Allocation).where(Allocation.started_at.is_not(None))))
    samples = {kind: len(values) for kind, values in seen.items()}
    rows = [{key: value for key, value in row.items() if key != "updated_at"} for row in startups]
    return LiveRun(verdicts, data.cost(), measured, samples, len(seen["resize"]), len(allocations), rows, latest_s)


# -- what things took ---------------------------------------------------------------------------------------------


def _measure(session: Session, jobs: Iterable[Job], spool: Path, site: Site) -> dict[str, list[float]]:
    """Seconds of each start-up and pause that happened.

    ``queue`` and ``start`` from the allocations' rows, ``switch`` from the controller's own profile. ``warm`` is what a
    job takes beyond its steps: from lease to first step less the spool delay, and from the last step to its end in the
    database. ``resize``: from the end of rank 0's last step in one generation to its first in the next.
    """
    out: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for allocation in session.scalars(select(Allocation).where(Allocation.started_at.is_not(None))):
        started = allocation.started_at or 0.0
        if allocation.submitted_at is not None:
            out["queue"].append(max(0.0, started - allocation.submitted_at))
        if allocation.warm_at is not None:
            out["start"].append(allocation.warm_at - started)
    for row in profile_rows.load_startups(session):
        if row.kind == "switch" and row.origin == "controller":
            out["switch"] += [row.seconds] * row.samples
    begins, ends = [], []
    for job in jobs:
        stints = _stints(session, job, spool)
        if not stints or job.started_at is None or job.finished_at is None:
            continue
        begins.append(stints[0].first_at - stints[0].granted_at - site.poll_s)
        ends.append(job.finished_at - stints[-1].end_at)
        for one, after in pairwise(stints):
            if one.ended_at == after.granted_at:  # not paused in between
                out["resize"].append(max(0.0, after.first_at - one.end_at))
    out["warm"] = [max(0.0, fmean(begins) + fmean(ends))] * len(begins) if begins else []
    return out


@dataclass(frozen=True, slots=True)
class _Stint:
    """Steps of one generation as its rank 0 journaled them."""

    granted_at: float
    ended_at: float | None
    first_at: float
    end_at: float
    """When its last step was done."""


def _stints(session: Session, job: Job, spool: Path) -> list[_Stint]:
    paced = job.spec["paced"]
    out = []
    query = select(Lease).where(Lease.job_id == job.id, Lease.rank == 0).order_by(Lease.generation)
    for lease in session.scalars(query):
        path = member_dir(spool / "jobs" / job.id, lease.generation, lease.allocation) / "journal.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        steps = [line for line in lines if "step" in line]
        if steps:
            gain = paced["speedup"][min(steps[-1]["world"], len(paced["speedup"])) - 1]
            end_at = steps[-1]["at"] + paced["step_s"] / gain
            out.append(_Stint(lease.granted_at, lease.ended_at, steps[0]["at"], end_at))
    return out


# -- the simulation -----------------------------------------------------------------------------------------------


def profiles_with(measured: Mapping[str, float], given: Mapping[str, PoolProfile]) -> dict[str, PoolProfile]:
    """The given profiles with the measured start-up times; what did not occur stays as given."""
    times: dict[str, Any] = {f"{kind}_s": seconds for kind, seconds in measured.items()}
    return {name: replace(profile, **times, origin="benchmarks/fidelity.py") for name, profile in given.items()}


def simulated(
    trace: Sequence[TraceJob],
    profiles: Mapping[str, PoolProfile],
    site: Site,
    *,
    start_sigma: float = 0.0,
    seed: int = 0,
) -> SimResult:
    """The same jobs on the simulated site: live tick, spool delay and limits, no Prompt Bank, iterations known."""
    options = SimOptions(
        gpus=site.gpus, tick_s=site.tick_s, spool_s=site.poll_s, idle_limit_s=site.idle_limit_s,
        walltime_s=site.walltime_s, bank=False, start_sigma=start_sigma, seed=seed,
    )  # fmt: skip
    whole = [replace(job, iters=float(max(1, round(job.iters)))) for job in trace]  # as the replay rounds them
    return simulate(whole, profiles, policies.get(POLICY), options)


def alone_s(job: TraceJob, profile: PoolProfile) -> float:
    """Seconds the job would take with all GPUs it may have, warm."""
    return profile.warm_s + job.work_s / speed_table(profile.speedup, job.max_gpus)[job.max_gpus]


def plain(site: Site) -> dict[str, Any]:
    return asdict(site)
