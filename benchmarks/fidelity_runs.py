"""One trace run live on a throw-away Slurm cluster, what was measured there, and its simulation."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePath
from statistics import fmean
from typing import Any, TypeAlias

from sqlalchemy import select
from sqlalchemy.orm import Session

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from slurm_cluster import Cluster  # noqa: E402 - lies among the tests
from slurm_site import SlurmUser  # noqa: E402

from prompttuner import policy as policies  # noqa: E402
from prompttuner.controller.replay import Replay, schedule, wait_and_submit  # noqa: E402
from prompttuner.controller.run import INBOX_LOOK_S  # noqa: E402
from prompttuner.db import Store  # noqa: E402
from prompttuner.db import profiles as profile_rows  # noqa: E402
from prompttuner.db.models import Allocation, Job, Lease  # noqa: E402
from prompttuner.policy.estimate import speed_table  # noqa: E402
from prompttuner.policy.snapshot import PoolProfile  # noqa: E402
from prompttuner.report.live import from_database  # noqa: E402
from prompttuner.sim import SimOptions, SimResult, simulate  # noqa: E402
from prompttuner.trace.job import TraceJob  # noqa: E402
from prompttuner.tuning.member import NOTE_S  # noqa: E402
from prompttuner.tuning.member_files import BEAT_S  # noqa: E402
from prompttuner.tuning.membership import member_dir  # noqa: E402

__all__ = [
    "LiveRun", "Samples", "Site", "Verdict", "alone_s", "first_load", "plain", "profiles_with", "run_live",
    "simulated", "stints_of",
]  # fmt: skip

POLICY = "prompttuner"
LEAD_S = 3.0
"""From the controller's start to the trace's begin."""
OWN = ("start", "switch")
"""Kinds that differ by LLM; the others are the site's."""

Samples: TypeAlias = dict[tuple[str, str], list[float]]
"""Seconds by (LLM, kind); kinds are queue, start, warm, resize and switch."""


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
    """See :func:`_measure`."""
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
    measured = _measure(session, jobs.values(), spool, site)
    startups = [dict(row._mapping) for row in profile_rows.load_startups(session)]
    startups = [{key: value for key, value in row.items() if key != "updated_at"} for row in startups]
    held = {(row["pool"], row["kind"]) for row in startups}
    for pool, model in sorted({(job.pool, job.model) for job in jobs.values()}):
        for kind, seconds in _means(measured, PurePath(model).name).items():
            if (pool, kind) not in held:
                startups.append(
                    {"pool": pool, "model": model, "kind": kind, "seconds": seconds, "samples": 1,
                     "origin": "benchmarks/fidelity.py"}
                )  # fmt: skip
    allocations = list(session.scalars(select(Allocation).where(Allocation.started_at.is_not(None))))
    resizes = sum(len(values) for (_, kind), values in measured.items() if kind == "resize")
    return LiveRun(verdicts, data.cost(), measured, resizes, len(allocations), startups, latest_s)


# -- what things took ---------------------------------------------------------------------------------------------


def _measure(session: Session, jobs: Iterable[Job], spool: Path, site: Site) -> Samples:
    """Seconds of each start-up and pause that happened, by LLM and kind, as the simulator counts them.

    ``queue`` and ``start`` together are from the submission (less the spool delay) to the agent's word that its LLM is
    loaded; Slurm's start parts them. ``switch`` is the controller's own profile. ``warm``: from a lease to its job's
    first step less the spool delay, and from the last step to the result in the spool. ``resize``: from the end of
    rank 0's last step in one generation to its first in the next.
    """
    out: Samples = defaultdict(list)
    for allocation in session.scalars(select(Allocation).where(Allocation.started_at.is_not(None))):
        llm, loaded = first_load(spool / "agents" / allocation.uuid)
        submitted = (allocation.submitted_at or 0.0) + site.poll_s
        queue = max(0.0, (allocation.started_at or 0.0) - submitted)  # Slurm tells whole seconds, rounded down
        out[llm, "queue"].append(queue)
        if loaded is not None:
            out[llm, "start"].append(loaded - submitted - queue)
    for row in profile_rows.load_startups(session):
        if row.kind == "switch" and row.origin == "controller":
            out[PurePath(row.model).name, "switch"] += [row.seconds] * row.samples
    for job in jobs:
        stints = stints_of(session, job, spool)
        if not stints or job.started_at is None or job.finished_at is None:
            continue
        llm = PurePath(job.model).name
        begin = stints[0].first_at - stints[0].granted_at - site.poll_s
        out[llm, "warm"].append(max(0.0, begin + stints[-1].done_at - stints[-1].end_at))
        for one, after in pairwise(stints):
            if one.ended_at == after.granted_at:  # not paused in between
                out[llm, "resize"].append(max(0.0, after.first_at - one.end_at))
    return out


def first_load(folder: Path) -> tuple[str, float | None]:
    """The LLM that an agent was started for, and when it was loaded (None: it was ended before)."""
    llm = PurePath(json.loads((folder / "settings.json").read_text())["model"]).name
    path = folder / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return llm, next((line["at"] for line in lines if line["event"] == "load"), None)


@dataclass(frozen=True, slots=True)
class Stint:
    """Steps of one generation as its rank 0 journaled them."""

    granted_at: float
    ended_at: float | None
    first_at: float
    end_at: float
    """When its last step was done."""
    done_at: float
    """When its result was written; ``end_at`` if it was not."""


def stints_of(session: Session, job: Job, spool: Path) -> list[Stint]:
    """Generations of a job with steps, in order. A tuning job's last step is taken to end with its journal line."""
    paced = job.spec.get("paced")
    out = []
    query = select(Lease).where(Lease.job_id == job.id, Lease.rank == 0).order_by(Lease.generation)
    for lease in session.scalars(query):
        path = member_dir(spool / "jobs" / job.id, lease.generation, lease.allocation) / "journal.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        steps = [line for line in lines if "step" in line]
        if steps:
            end_at = steps[-1]["at"]
            if paced is not None:
                end_at += paced["step_s"] / paced["speedup"][min(steps[-1]["world"], len(paced["speedup"])) - 1]
            done = path.with_name("done.json")
            done_at = max(end_at, done.stat().st_mtime) if done.exists() else end_at
            out.append(Stint(lease.granted_at, lease.ended_at, steps[0]["at"], end_at, done_at))
    return out


# -- the simulation -----------------------------------------------------------------------------------------------


def _means(samples: Samples, llm: str) -> dict[str, float]:
    """Mean seconds by kind, as far as there are samples: of this LLM where LLMs differ, else of all."""
    found: dict[str, list[float]] = defaultdict(list)
    for (name, kind), values in samples.items():
        if kind not in OWN or name == llm:
            found[kind] += values
    return {kind: max(0.0, fmean(values)) for kind, values in found.items()}


def profiles_with(samples: Samples, given: Mapping[str, PoolProfile]) -> dict[str, PoolProfile]:
    """The given profiles with the measured start-up times; what did not occur stays as given."""
    out = {}
    for llm, profile in given.items():
        times: dict[str, Any] = {f"{kind}_s": seconds for kind, seconds in _means(samples, llm).items()}
        out[llm] = replace(profile, **times, origin="benchmarks/fidelity.py")
    return out


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
        walltime_s=site.walltime_s, bank=False, start_sigma=start_sigma, seed=seed, look_s=INBOX_LOOK_S / 2,
        stale_s=(BEAT_S + NOTE_S) / 2, seen_ends=True,
    )  # fmt: skip
    whole = [replace(job, iters=float(max(1, round(job.iters)))) for job in trace]  # as the replay rounds them
    return simulate(whole, profiles, policies.get(POLICY), options)


def alone_s(job: TraceJob, profile: PoolProfile) -> float:
    """Seconds the job would take with all GPUs it may have, warm."""
    return profile.warm_s + job.work_s / speed_table(profile.speedup, job.max_gpus)[job.max_gpus]


def plain(site: Site) -> dict[str, Any]:
    return asdict(site)
