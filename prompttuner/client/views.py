"""What is shown of a job and of an event: the same values in every command, in ``--json`` and in Python."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompttuner.protocol.files import understood
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.protocol.wire import Message
from prompttuner.spec.when import iso
from prompttuner.states import JobState, Verdict, verdict_of

if TYPE_CHECKING:
    from sqlalchemy import Row

    from prompttuner.db.tables.models import Event, Job

__all__ = ["EventView", "JobView", "event_view", "job_view"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView(Message):
    """All that matters of one job. Times are Unix seconds, with ISO text beside the most used."""

    id: str
    name: str
    owner: str
    state: str
    outcome: str | None
    error: str | None
    note: str | None
    model: str
    """As the user wrote it."""
    pool: str
    target: str
    metric: float | None
    """Of the last evaluation."""
    best: float | None
    train_loss: float | None
    """Training loss of the last iteration."""
    eval_loss: float | None
    """Evaluation loss of the result; None before there is one."""
    step: int
    ita: int | None
    """Iterations to the target; None until it is reached."""
    max_iterations: int | None
    iters_per_s: float | None
    initial_prompt: str | None
    deadline_at: float | None
    deadline_iso: str | None
    slo: Verdict
    best_effort: bool
    """It has no deadline, or its deadline is given up."""
    priority: int
    gpus: int
    min_gpus: int
    max_gpus: int
    scale_to: int | None
    history: tuple[tuple[float, int], ...]
    """(time, members), ascending."""
    gpu_seconds: float
    submitted_at: float
    submitted_iso: str
    started_at: float | None
    first_step_at: float | None
    finished_at: float | None
    finished_iso: str | None
    result: str | None
    """Its folder, where the job has ended with one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView(Message):
    """One event."""

    seq: int
    at: float
    at_iso: str
    kind: str
    job: str | None
    allocation: str | None
    cause: str
    data: object


def job_view(job: Job, now: float, spool_dir: Path) -> JobView:
    """A job's row as it is shown at ``now``."""
    spec = understood(ResolvedSpec.read(job.spec))
    result = spool_dir / "jobs" / job.id / "result"
    return JobView(
        id=job.id,
        name=job.name,
        owner=job.owner,
        state=str(job.state),
        outcome=job.outcome,
        error=job.error,
        note=f"held; `prompttuner release {job.id}` lets it go on" if job.state == JobState.HELD else job.note,
        model=job.model if spec is None else spec.model_name or job.model,
        pool=job.pool,
        target="?" if spec is None else str(spec.target),
        metric=job.metric,
        best=job.best,
        train_loss=job.train_loss,
        eval_loss=job.eval_loss,
        step=job.step,
        ita=job.ita,
        max_iterations=None if spec is None else spec.max_iterations,
        iters_per_s=job.iters_per_s,
        initial_prompt=job.initial_prompt or (None if spec is None else str(spec.initial_prompt)),
        deadline_at=job.deadline_at,
        deadline_iso=None if job.deadline_at is None else iso(job.deadline_at),
        slo=verdict_of(JobState(job.state), job.deadline_at, job.finished_at, now),
        best_effort=job.best_effort or job.deadline_at is None,
        priority=job.priority,
        gpus=len(job.members),
        min_gpus=job.min_gpus,
        max_gpus=job.max_gpus,
        scale_to=job.scale_to,
        history=tuple((at, members) for at, members in job.history),
        gpu_seconds=job.gpu_seconds if job.finished_at is not None else max(job.gpu_seconds, _so_far(job, now)),
        submitted_at=job.submitted_at,
        submitted_iso=iso(job.submitted_at),
        started_at=job.started_at,
        first_step_at=job.first_step_at,
        finished_at=job.finished_at,
        finished_iso=None if job.finished_at is None else iso(job.finished_at),
        result=str(result) if job.state in {JobState.DONE, JobState.EXHAUSTED} else None,
    )


def _so_far(job: Job, now: float) -> float:
    """GPU-seconds of a job that has not ended: those of its present leases are not in its row yet."""
    entries = [*job.history, [now, 0]]
    return float(sum(max(0.0, end - at) * members for (at, members), (end, _) in itertools.pairwise(entries)))


def event_view(event: Event | Row[Any]) -> EventView:
    """An event's row as it is shown."""
    return EventView(
        seq=event.seq,
        at=event.at,
        at_iso=iso(event.at),
        kind=event.kind,
        job=event.job_id,
        allocation=event.allocation,
        cause=event.cause,
        data=event.data,
    )
