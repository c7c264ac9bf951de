"""A live database as a report's data: jobs, allocations and leases of a stretch of time."""

from __future__ import annotations

import math

from sqlalchemy.orm import Session

from prompttuner.db.queries import period
from prompttuner.db.tables.models import Allocation, Job, Lease
from prompttuner.report.data import JobBar, ReportData, busy_by_pool, steps
from prompttuner.states import JobState
from prompttuner.words import Counted

__all__ = ["from_database"]

_STATES = {
    JobState.DONE: "ended",
    JobState.EXHAUSTED: "exhausted",
    JobState.FAILED: "failed",
    JobState.STOPPED: "stopped",
    JobState.CANCELLED: "cancelled",
    JobState.REJECTED: "rejected",
    JobState.RUNNING: "running",
}


def from_database(session: Session, now_s: float, since_s: float, source: str) -> ReportData:
    """What happened between ``since_s`` and ``now_s`` (Unix times).

    The report's clock begins at ``since_s``, or at the first submission or allocation if that is later.
    Allocations count as starting until they are warm, as busy while a lease of theirs runs, and as idle otherwise.
    """
    jobs, allocations, held = period.since(session, since_s)
    leases: dict[str, list[Lease]] = {}
    for lease in held:
        leases.setdefault(lease.allocation, []).append(lease)
    first = [job.submitted_at for job in jobs] + [a.started_at for a in allocations if a.started_at is not None]
    since_s = min(max(since_s, min(first, default=since_s)), now_s)  # nothing before the first event is shown
    clock = _Clock(since_s, now_s)
    spans: dict[str, list[tuple[float, float, int]]] = {}
    all_changes: list[tuple[float, str, int]] = []
    for allocation in allocations:
        all_changes += _changes(allocation, leases.get(allocation.uuid, []), clock, spans)
    bars = [_bar(job, _members(spans.get(job.id, [])), clock) for job in jobs]
    return ReportData(
        title="prompttuner",
        source=source,
        begin_s=0.0,
        end_s=now_s - since_s,
        jobs=bars,
        usage=steps(all_changes),
        epoch_s=since_s,
        pool_usage=busy_by_pool(bars),
        facts=_stand_ins(jobs),
    )


def _stand_ins(jobs: list[Job]) -> dict[str, str]:
    """Replayed jobs are named as what they are: they tuned nothing, and accelerated ones are another workload."""
    paced = [spec["paced"] for job in jobs if isinstance(spec := job.spec, dict) and spec.get("paced")]
    if not paced:
        return {}
    factors = sorted({float(one.get("accelerated") or 1) for one in paced} - {1.0})
    quick = f", accelerated {', '.join(f'{factor:g}' for factor in factors)} times: another workload" if factors else ""
    return {"Paced stand-ins": f"{len(paced)} of {Counted(len(jobs), 'job')}{quick}"}


class _Clock:
    """Unix times to the report's clock, clipped to what it shows."""

    def __init__(self, since_s: float, now_s: float) -> None:
        self.since_s, self.now_s = since_s, now_s

    def at(self, unix_s: float | None, missing: float = math.inf) -> float:
        return missing if unix_s is None else unix_s - self.since_s

    def clip(self, unix_s: float | None) -> float:
        return min(max(self.at(unix_s, self.now_s - self.since_s), 0.0), self.now_s - self.since_s)


def _changes(
    allocation: Allocation, leases: list[Lease], clock: _Clock, spans: dict[str, list[tuple[float, float, int]]]
) -> list[tuple[float, str, int]]:
    begin, end = clock.clip(allocation.started_at), clock.clip(allocation.ended_at)
    warm = min(max(clock.clip(allocation.warm_at), begin), end)
    gpus = allocation.gpus
    changes = [(begin, "starting", gpus), (warm, "starting", -gpus), (warm, "idle", gpus), (end, "idle", -gpus)]
    at = warm
    for lease in sorted(leases, key=lambda lease: lease.granted_at):
        first = max(clock.clip(lease.granted_at), at)
        last = min(max(clock.clip(lease.ended_at), first), end)
        if last > first:
            changes += [(first, "idle", -gpus), (first, "busy", gpus), (last, "busy", -gpus), (last, "idle", gpus)]
            spans.setdefault(lease.job_id, []).append((first, last, gpus))
            at = last
    return changes


def _members(spans: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """The job's GPUs over time from its members' single spans."""
    line = steps([change for b, e, gpus in spans for change in ((b, "busy", gpus), (e, "busy", -gpus))])
    ends = [usage.at_s for usage in line[1:]]
    return [(usage.at_s, end, usage.busy) for usage, end in zip(line, ends, strict=False) if usage.busy]


def _bar(job: Job, spans: list[tuple[float, float, int]], clock: _Clock) -> JobBar:
    return JobBar(
        id=job.id,
        pool=job.pool,
        submit_s=clock.at(job.submitted_at, 0.0),
        start_s=clock.at(job.started_at),
        end_s=clock.at(job.finished_at),
        deadline_s=clock.at(job.deadline_at),
        state=_STATES.get(JobState(job.state), "waiting"),
        name=job.name,
        spans=spans,
        note=job.error or job.note,
    )
