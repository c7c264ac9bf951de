"""Jobs and events in words, for tables and lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prompttuner.spec.when import format_duration, iso

if TYPE_CHECKING:
    from sqlalchemy import Row

    from prompttuner.client.views import JobView
    from prompttuner.db.tables.models import Event

__all__ = ["deadline_text", "event_line", "summary_row"]


def event_line(event: Event | Row[Any]) -> str:
    """An event on one line: when, who, what, why."""
    who = event.job_id or (f"allocation {event.allocation[:8]}" if event.allocation else "")
    return "  ".join(part for part in (iso(event.at), who, event.kind, event.cause) if part)


def summary_row(view: JobView, now: float) -> list[str]:
    """One line of ``status``; see ``SUMMARY_COLUMNS`` there."""
    metric = view.metric
    return [
        view.id,
        view.name or "",
        view.state,
        f"{view.step}/{view.max_iterations}",
        "-" if metric is None else f"{metric:.4g}",
        view.target,
        deadline_text(view, now),
        str(view.gpus),
        view.error or view.note or "",
    ]


def deadline_text(view: JobView, now: float) -> str:
    """``in 12m30s``, ``missed by 3m``, ``met, 40s early``, ``not reached, ended 40s early``, ``best effort``."""
    deadline = view.deadline_at
    if deadline is None:
        return "best effort"
    apart = format_duration(abs((view.finished_at or now) - deadline))
    match view.slo:
        case "met":
            return f"met, {apart} early"
        case "open":
            return f"in {apart}" + (" (not counted)" if view.best_effort else "")
        case "unreached":
            return f"target not reached, ended {apart} early"
        case "cancelled":
            return f"cancelled {apart} before"
    return f"missed by {apart}"
