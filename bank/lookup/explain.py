"""A lookup's report in words, for ``explain JOB``. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from prompttuner.words import Counted

__all__ = ["CANDIDATE_COLUMNS", "candidate_rows", "lookup_lines"]

CANDIDATE_COLUMNS = ("candidate", "kind", "task", "loss", "after steps", "jobs before", "source")


def lookup_lines(report: Mapping[str, Any]) -> list[str]:
    """What was found and why, what it cost, what it should save, what was passed over."""
    if "strategy" not in report:
        if report.get("why"):
            return [f"Prompt Bank: {report['why']}"]
        if report.get("budget_s"):
            return [f"Prompt Bank: {report['budget_s']:.3g} s granted for a lookup"]
        return ["Prompt Bank: not looked up (nothing stored for this LLM, or a lookup would not have paid)"]
    lines = [f"Prompt Bank: starts from {report.get('source', 'vocab')}: {report.get('why', '')}"]
    if report.get("evaluations"):
        share = report["evaluations"] / max(1, report.get("brute_force_evaluations") or 1)
        entries = Counted(report.get("entries", 0), "entry", "entries")
        clusters = Counted(report.get("clusters", 0), "cluster")
        lines.append(
            f"  {entries} in {clusters}, {report['strategy']}: {Counted(report['evaluations'], 'evaluation')} "
            f"({share:.0%} of scoring all), {report.get('seconds', 0.0):.2g} of {report.get('budget_s', 0.0):.3g} s"
            + (", cut short" if report.get("shortened") else "")
        )
    race = report.get("race")
    if isinstance(race, str):
        lines.append(f"  Race of a few tuning steps {race}")
    elif race:
        field = " then ".join(f"{part.get('candidates')} for {Counted(part.get('steps', 0), 'step')}" for part in race)
        lines.append(f"  Race: {field}")
    expected = report.get("expected")
    if isinstance(expected, Mapping):
        lines.append(
            f"  Expected: {expected.get('factor', 1.0):.2g} times a vocabulary start's iterations "
            f"({expected.get('origin', 'assumed')})"
        )
    lines += [f"  Note: {note}" for note in report.get("notes") or []]
    return lines


def candidate_rows(
    report: Mapping[str, Any], outcomes: Mapping[str, Sequence[Sequence[Any]]] | None = None
) -> list[list[Any]]:
    """The best candidates with their scores, as rows below ``CANDIDATE_COLUMNS``.

    Args:
        report: a job's ``lookup.json``.
        outcomes: by entry, how jobs fared that started from it: ``[job, reached, iterations]`` each.
    """
    rows = []
    for about in report.get("candidates") or []:
        losses = [about.get(key) for key in ("score", "after_steps")]
        shown = ["" if loss is None else f"{loss:.3g}" for loss in losses]
        kind = " ".join(str(about[key]) for key in ("version", "kind") if about.get(key))
        name = str(about.get("name", ""))
        history = _history((outcomes or {}).get(name, ()))
        rows.append([name[:12], kind, about.get("task", ""), *shown, history, about.get("source", "")])
    return rows


def _history(outcomes: Sequence[Sequence[Any]]) -> str:
    """Such as ``2 of 3 reached, median 14``."""
    if not outcomes:
        return ""
    took = [iterations for _, reached, iterations in outcomes if reached and iterations is not None]
    done = sum(bool(reached) for _, reached, _ in outcomes)
    return f"{done} of {len(outcomes)} reached" + (f", median {median(took):g}" if took else "")
