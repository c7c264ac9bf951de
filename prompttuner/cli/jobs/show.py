"""``show`` and ``explain``: one job in full, and the reasons behind it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.arguments import JobWord
from prompttuner.cli.frame.output import JsonFlag, print_json, print_pairs, print_table
from prompttuner.cli.jobs.views import deadline_text
from prompttuner.cli.state.reading import one_job
from prompttuner.client.views import JobView, event_view, job_view
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.spec.when import format_duration

__all__ = ["app"]

app = typer.Typer()
LATEST_EVENTS = 15


@app.command()
def show(job: JobWord, json: JsonFlag = False) -> None:
    """Show all that is known about a job."""
    now = time.time()
    with one_job(job) as (_, row):
        view = job_view(row, now, context.settings().spool_dir)
        known = dict(row.spec)
        spec = ResolvedSpec.expect(known)
    if json:
        print_json({**view.to_json(), "spec": known})
        return
    end = view.finished_at or now
    print_pairs(
        {
            "job": view.id,
            "name": view.name,
            "state": view.state + (f" ({view.outcome})" if view.outcome else ""),
            "error": view.error,
            "note": view.note,
            "model": view.model,
            "target": view.target,
            "metric": None if view.metric is None else f"{view.metric:.4g} (best {_number(view.best)})",
            "training loss": None if view.train_loss is None else f"{view.train_loss:.4g} (its last step's)",
            "evaluation loss": None if view.eval_loss is None else f"{view.eval_loss:.4g} (the result's)",
            "iteration": f"{view.step} of at most {view.max_iterations}",
            "speed": None if view.iters_per_s is None else f"{view.iters_per_s:.2f} iterations/s",
            "initial prompt": view.initial_prompt,
            "submitted": view.submitted_iso,
            "deadline": f"{view.deadline_iso}, {deadline_text(view, now)}" if view.deadline_iso else "best effort",
            "finished": view.finished_iso,
            "latency": format_duration(end - view.submitted_at) + ("" if view.finished_at else " so far"),
            "GPUs": _gpus(view),
            "GPU-seconds": f"{view.gpu_seconds:.1f}",
            "GPUs over time": history_text(view.history, view.submitted_at),
            "priority": str(view.priority),
            "train data": f"{spec.train} ({spec.train_count} samples)",
            "eval data": f"{spec.eval} ({spec.eval_count} samples)",
            "result": view.result,
        }
    )


@app.command()
def explain(job: JobWord, json: JsonFlag = False) -> None:
    """Say in words why a job waits, or why it has the GPUs it has."""
    from prompttuner.cli.state.bank_entries import outcomes_by_entry
    from prompttuner.db.queries import events as event_rows
    from prompttuner.db.tables.recorded import lookup_of

    now = time.time()
    with one_job(job) as (session, row):
        view = job_view(row, now, context.settings().spool_dir)
        lookup = lookup_of(row)
        known = row.lookup or (None if lookup.budget_s is None else {"budget_s": lookup.budget_s})
        prediction = {"iterations_left": row.iters_mid, "iterations_left_p90": row.iters_hi}
        events = [event_view(event) for event in event_rows.latest(session, LATEST_EVENTS, job=row.id)]
        candidates = [about.name for about in lookup.candidates or ()]
        outcomes = outcomes_by_entry(session, row.model, candidates)
    if json:
        print_json(
            {
                **view.to_json(),
                "prediction": prediction,
                "lookup": known,
                "events": [event.to_json() for event in events],
            }
        )
        return
    typer.echo(f"{view.id} is {view.state}; deadline: {deadline_text(view, now)}.")
    if view.error:
        typer.echo(f"Error: {view.error}")
    typer.echo(f"Now: {_now(view)}")
    if prediction["iterations_left"] is not None and view.finished_at is None:
        mid, high = prediction["iterations_left"], prediction["iterations_left_p90"]
        typer.echo(
            f"Expected: {mid:.0f} more iterations" + ("" if high is None else f" ({high:.0f} at the 90th percentile)")
        )
    if known:
        from prompttuner.bank.lookup.explain import CANDIDATE_COLUMNS, candidate_rows, lookup_lines

        for line in lookup_lines(lookup):
            typer.echo(line)
        if rows := candidate_rows(lookup, outcomes):
            print_table(CANDIDATE_COLUMNS, rows)
    if events:
        print_table(["at", "what", "why"], [[e.at_iso, e.kind, e.cause] for e in events], "Latest decisions:")


def _now(view: JobView) -> str:
    return view.note or "nothing has been decided about it yet"


def history_text(history: Sequence[tuple[float, int]], start: float) -> str:
    """Workers over time, as ``+0s: 1, +12s: 2``."""
    return ", ".join(f"+{format_duration(at - start)}: {members}" for at, members in history)


def _gpus(view: JobView) -> str:
    fixed = "" if view.scale_to is None else f", set to {view.scale_to} by hand"
    return f"{view.gpus} (between {view.min_gpus} and {view.max_gpus}{fixed})"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
