"""One trace run live on a throw-away Slurm cluster, what was measured there, and its simulation."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from fidelity_times import TIMES, Samples, means, measure  # noqa: E402
from slurm_cluster import Cluster  # noqa: E402 - lies among the tests
from slurm_site import SlurmUser  # noqa: E402

from prompttuner import policy as policies  # noqa: E402
from prompttuner.controller.replay import Replay, schedule, wait_and_submit  # noqa: E402
from prompttuner.controller.run import INBOX_LOOK_S  # noqa: E402
from prompttuner.db import Store  # noqa: E402
from prompttuner.db.queries import profiles as profile_rows  # noqa: E402
from prompttuner.db.tables.models import Allocation, Job  # noqa: E402
from prompttuner.policy.contract.snapshot import PoolProfile  # noqa: E402
from prompttuner.policy.estimate import speed_table  # noqa: E402
from prompttuner.report.live import from_database  # noqa: E402
from prompttuner.sim import SimOptions, SimResult, simulate  # noqa: E402
from prompttuner.trace.job import TraceJob  # noqa: E402
from prompttuner.worker.member import NOTE_S  # noqa: E402
from prompttuner.worker.member_files import BEAT_S  # noqa: E402

__all__ = ["LiveRun", "Site", "Verdict", "alone_s", "plain", "run_live", "simulated"]

POLICY = "prompttuner"
LEAD_S = 3.0
"""From the controller's start to the trace's begin."""


@dataclass(frozen=True, slots=True)
class Site:
    """What live run and simulation have in common."""

    gpus: int = 16
    nodes: int = 4
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
    measured: Samples
    """See :func:`fidelity_times.measure`."""
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
        user.until(lambda: not user.queue(), "Slurm has ended all allocations")
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
    measured = measure(session, jobs.values(), spool, site.poll_s)
    startups = [row._asdict() for row in profile_rows.load_startups(session)]
    startups = [{key: value for key, value in row.items() if key != "updated_at"} for row in startups]
    held = {(row["pool"], row["kind"]) for row in startups}
    for pool, model in sorted({(job.pool, job.model) for job in jobs.values()}):
        for kind, seconds in means(measured, PurePath(model).name).items():
            if kind in TIMES and (pool, kind) not in held:
                startups.append(
                    {"pool": pool, "model": model, "kind": kind, "seconds": seconds, "samples": 1,
                     "origin": "benchmarks/fidelity.py"}
                )  # fmt: skip
    allocations = list(session.scalars(select(Allocation).where(Allocation.started_at.is_not(None))))
    resizes = sum(len(values) for (_, kind), values in measured.items() if kind == "resize")
    return LiveRun(verdicts, data.cost(), measured, resizes, len(allocations), startups, latest_s)


# -- the simulation -----------------------------------------------------------------------------------------------


def simulated(
    trace: Sequence[TraceJob],
    profiles: Mapping[str, PoolProfile],
    site: Site,
    *,
    told: Mapping[str, PoolProfile] | None = None,
    release_s: float = 0.0,
    start_sigma: float = 0.0,
    seed: int = 0,
) -> SimResult:
    """The same jobs on the simulated site: live tick, spool delay and limits, no Prompt Bank, iterations known.

    ``profiles`` say what takes how long, ``told`` what the policy believes of it (the same where not given).
    """
    options = SimOptions(
        gpus=site.gpus, tick_s=site.tick_s, spool_s=site.poll_s, idle_limit_s=site.idle_limit_s,
        walltime_s=site.walltime_s, bank=False, start_sigma=start_sigma, seed=seed, look_s=INBOX_LOOK_S / 2,
        stale_s=(BEAT_S + NOTE_S) / 2, release_s=release_s, daemon=True,
    )  # fmt: skip
    whole = [replace(job, iters=float(max(1, round(job.iters)))) for job in trace]  # as the replay rounds them
    return simulate(whole, profiles, policies.get(POLICY), options, told)


def alone_s(job: TraceJob, profile: PoolProfile) -> float:
    """Seconds the job would take with all GPUs it may have, warm."""
    return profile.warm_s + job.work_s / speed_table(profile.speedup, job.max_gpus)[job.max_gpus]


def plain(site: Site) -> dict[str, Any]:
    return asdict(site)
