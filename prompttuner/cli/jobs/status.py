"""``prompttuner status``: the list of jobs."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.completion import job_states, job_words
from prompttuner.cli.frame.output import JsonFlag, print_json, print_table
from prompttuner.cli.jobs.views import summary_row
from prompttuner.cli.state.reading import find_job, one_job, open_store, pending_jobs
from prompttuner.client.views import JobView, job_view
from prompttuner.errors import SpecError
from prompttuner.states import JobState
from prompttuner.words import Counted

__all__ = ["app"]

app = typer.Typer()

RECENT_S = 86400
COLUMNS = ["job", "name", "state", "iteration", "metric", "target", "deadline", "GPUs", "note"]
DROPPED = ("target", "metric", "note", "iteration", "GPUs", "name")
"""Columns that go on a narrow terminal, in this order; id, state and deadline stay."""


@app.command()
def status(
    jobs: Annotated[
        list[str] | None, typer.Argument(help="Ids, beginnings of ids, or names.", autocompletion=job_words)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", "-a", help="Ended jobs of any age too.")] = False,
    state: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state (may be repeated).", autocompletion=job_states)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most n jobs, the newest; active ones first.")] = 200,
    json: JsonFlag = False,
) -> None:
    """List jobs: state, progress, deadline, GPUs."""
    now = time.time()
    for one in state or []:
        if one not in set(JobState):
            raise SpecError(f"--state {one}: there is no such state; states are: {', '.join(JobState)}")
    settings = context.settings()
    views = _views(jobs or [], all_, state or [], limit, now)
    shown = {view.id for view in views}
    waiting = [] if jobs or state else [new for new in pending_jobs(settings) if new.job not in shown]
    if json:
        print_json(
            {"jobs": [view.to_json() for view in views], "requested": [new.to_json() for new in waiting], "now": now}
        )
        return
    rows = [summary_row(view, now) for view in views]
    for new in waiting:
        note = "in the inbox: the controller takes it at its next tick"
        rows.append([new.job, new.spec.name or "", "requested", "", "", "", "", "", note])
    if rows:
        print_table(COLUMNS, rows, drop=DROPPED, shorten="note")
        if sys.stdout.isatty():
            typer.echo("prompttuner explain JOB says more than a note")
    else:
        typer.echo("no jobs" + ("" if all_ or state else " of the last day; --all shows older ones"))


def _views(words: list[str], everything: bool, states: list[str], limit: int, now: float) -> list[JobView]:
    from prompttuner.db.queries import jobs

    spool_dir = context.settings().spool_dir
    store = open_store()
    if store is None:
        if words:
            with one_job(words[0]):  # says why there is none
                pass
        return []
    with store, store.read() as session:
        if words:
            return [job_view(find_job(session, word), now, spool_dir) for word in words]
        if states or everything:
            newest = list(jobs.newest(session, limit, states or list(JobState)))
        else:
            newest = list(jobs.newest(session, limit, jobs.ACTIVE_STATES))  # hidden by none that ended meanwhile
            if len(newest) < limit:
                newest += jobs.newest(session, limit - len(newest), [], ended_since=now - RECENT_S)
        if len(newest) == limit:
            sys.stderr.write(f"note: at most {Counted(limit, 'job')}; --limit shows more\n")
        return [job_view(job, now, spool_dir) for job in sorted(newest, key=lambda job: (job.submitted_at, job.id))]
