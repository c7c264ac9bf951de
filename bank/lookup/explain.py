"""A lookup's report in words, for ``explain JOB``. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from prompttuner.protocol.lookup import LookupReport
from prompttuner.words import Counted

__all__ = ["CANDIDATE_COLUMNS", "candidate_rows", "lookup_lines"]

CANDIDATE_COLUMNS = ("candidate", "kind", "task", "loss", "after steps", "jobs before", "source")


def lookup_lines(report: LookupReport) -> list[str]:
    """What was found and why, what it cost, what it should save, what was passed over."""
    if report.strategy is None:
        if report.why:
            return [f"Prompt Bank: {report.why}"]
        if report.budget_s:
            return [f"Prompt Bank: {report.budget_s:.3g} s granted for a lookup"]
        return ["Prompt Bank: not looked up (nothing stored for this LLM, or a lookup would not have paid)"]
    lines = [f"Prompt Bank: starts from {report.source or 'vocab'}: {report.why or ''}"]
    if report.evaluations:
        share = report.evaluations / max(1, report.brute_force_evaluations or 1)
        entries = Counted(report.entries or 0, "entry", "entries")
        clusters = Counted(report.clusters or 0, "cluster")
        lines.append(
            f"  {entries} in {clusters}, {report.strategy}: {Counted(report.evaluations, 'evaluation')} "
            f"({share:.0%} of scoring all), {report.seconds or 0.0:.2g} of {report.budget_s or 0.0:.3g} s"
            + (", cut short" if report.shortened else "")
        )
    if isinstance(report.race, str):
        lines.append(f"  Race of a few tuning steps {report.race}")
    elif report.race:
        field = " then ".join(f"{part.candidates} for {Counted(part.steps, 'step')}" for part in report.race)
        lines.append(f"  Race: {field}")
    if report.expected is not None:
        lines.append(
            f"  Expected: {report.expected.factor:.2g} times a vocabulary start's iterations ({report.expected.origin})"
        )
    lines += [f"  Note: {note}" for note in report.notes or ()]
    return lines


def candidate_rows(
    report: LookupReport, outcomes: Mapping[str, Sequence[Sequence[Any]]] | None = None
) -> list[list[Any]]:
    """The best candidates with their scores, as rows below ``CANDIDATE_COLUMNS``.

    Args:
        report: of a job.
        outcomes: by entry, how jobs fared that started from it: ``[job, reached, iterations]`` each.
    """
    rows = []
    for about in report.candidates or ():
        shown = ["" if loss is None else f"{loss:.3g}" for loss in (about.score, about.after_steps)]
        kind = " ".join(word for word in (about.version, about.kind) if word)
        history = _history((outcomes or {}).get(about.name, ()))
        rows.append([about.name[:12], kind, about.task or "", *shown, history, about.source or ""])
    return rows


def _history(outcomes: Sequence[Sequence[Any]]) -> str:
    """Such as ``2 of 3 reached, median 14``."""
    if not outcomes:
        return ""
    took = [iterations for _, reached, iterations in outcomes if reached and iterations is not None]
    done = sum(bool(reached) for _, reached, _ in outcomes)
    return f"{done} of {len(outcomes)} reached" + (f", median {median(took):g}" if took else "")
