"""Rows of the database as plain values: what ``--json`` prints and tables are made of."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompttuner.spec.when import format_duration, iso
from prompttuner.states import JOB_ENDED, JobState

if TYPE_CHECKING:
    from sqlalchemy import Row

    from prompttuner.db.tables.models import Event, Job

__all__ = ["deadline_text", "event_line", "event_view", "job_view", "slo", "summary_row"]


def slo(job: Job, now: float) -> str:
    """``none`` (best effort from the start), ``met``, ``missed``, or ``open`` while it can still be met."""
    if job.deadline_at is None:
        return "none"
    if job.state == JobState.DONE and job.finished_at is not None:
        return "met" if job.finished_at <= job.deadline_at else "missed"
    if job.state in JOB_ENDED or now > job.deadline_at:
        return "missed"
    return "open"


def job_view(job: Job, now: float, spool_dir: Path) -> dict[str, Any]:
    """All that matters of one job; times are Unix seconds, with ISO text beside the most used."""
    result = spool_dir / "jobs" / job.id / "result"
    return {
        "id": job.id,
        "name": job.name,
        "owner": job.owner,
        "state": str(job.state),
        "outcome": job.outcome,
        "error": job.error,
        "note": f"held; `prompttuner release {job.id}` lets it go on" if job.state == JobState.HELD else job.note,
        "model": job.spec.get("model_name") or job.model,
        "pool": job.pool,
        "target": _target_text(job),
        "metric": job.metric,
        "best": job.best,
        "train_loss": job.train_loss,
        "eval_loss": job.eval_loss,
        "step": job.step,
        "max_iterations": job.spec.get("max_iterations"),
        "iters_per_s": job.iters_per_s,
        "initial_prompt": job.initial_prompt or job.spec.get("initial_prompt"),
        "deadline_at": job.deadline_at,
        "deadline_iso": None if job.deadline_at is None else iso(job.deadline_at),
        "slo": slo(job, now),
        "best_effort": job.best_effort or job.deadline_at is None,
        "priority": job.priority,
        "gpus": len(job.members),
        "min_gpus": job.min_gpus,
        "max_gpus": job.max_gpus,
        "scale_to": job.scale_to,
        "history": job.history,
        "gpu_seconds": job.gpu_seconds if job.finished_at is not None else max(job.gpu_seconds, _so_far(job, now)),
        "submitted_at": job.submitted_at,
        "submitted_iso": iso(job.submitted_at),
        "started_at": job.started_at,
        "first_step_at": job.first_step_at,
        "finished_at": job.finished_at,
        "finished_iso": None if job.finished_at is None else iso(job.finished_at),
        "result": str(result) if job.state in {JobState.DONE, JobState.EXHAUSTED} else None,
    }


def _so_far(job: Job, now: float) -> float:
    """GPU-seconds of a job that has not ended: those of its present leases are not in its row yet."""
    entries = [*job.history, [now, 0]]
    return float(sum(max(0.0, end - at) * members for (at, members), (end, _) in itertools.pairwise(entries)))


def event_view(event: Event | Row[Any]) -> dict[str, Any]:
    """An event as plain values."""
    return {
        "seq": event.seq,
        "at": event.at,
        "at_iso": iso(event.at),
        "kind": event.kind,
        "job": event.job_id,
        "allocation": event.allocation,
        "cause": event.cause,
        "data": event.data,
    }


def event_line(event: Event | Row[Any]) -> str:
    """An event on one line: when, who, what, why."""
    who = event.job_id or (f"allocation {event.allocation[:8]}" if event.allocation else "")
    return "  ".join(part for part in (iso(event.at), who, event.kind, event.cause) if part)


def summary_row(view: dict[str, Any], now: float) -> list[str]:
    """One line of ``status``; see ``SUMMARY_COLUMNS`` there."""
    metric = view["metric"]
    return [
        view["id"],
        view["name"] or "",
        view["state"],
        f"{view['step']}/{view['max_iterations']}",
        "-" if metric is None else f"{metric:.4g}",
        view["target"],
        deadline_text(view, now),
        str(view["gpus"]),
        view["error"] or view["note"] or "",
    ]


def deadline_text(view: dict[str, Any], now: float) -> str:
    """``in 12m30s``, ``missed by 3m``, ``met, 40s early``, ``best effort``."""
    deadline = view["deadline_at"]
    if deadline is None:
        return "best effort"
    if view["slo"] == "met":
        return f"met, {format_duration(deadline - view['finished_at'])} early"
    if view["slo"] == "open":
        return f"in {format_duration(deadline - now)}" + (" (not counted)" if view["best_effort"] else "")
    late = (view["finished_at"] or now) - deadline
    return f"missed by {format_duration(late)}" if late > 0 else "missed"


def _target_text(job: Job) -> str:
    target = job.spec.get("target") or {}
    return f"{target.get('metric', '?')}{target.get('op', '')}{target.get('value', '')}"
