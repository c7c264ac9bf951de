"""``prompttuner events``: the record of what happened and why."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prompttuner.cli.output import JsonFlag, print_json
from prompttuner.cli.state import one_job, open_store
from prompttuner.cli.views import event_line, event_view

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["app"]

app = typer.Typer()

FOLLOW_S = 1.0


@app.command()
def events(
    job: Annotated[str | None, typer.Option(help="Only of this job.")] = None,
    allocation: Annotated[str | None, typer.Option(help="Only of this allocation (its whole id).")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only of this kind, such as lease.granted; 'lease.' means all leases.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="The newest n.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show what happened and why: jobs, leases, allocations, Slurm."""
    job_id = None
    if job is not None:
        with one_job(job) as (_, row):
            job_id = row.id
    seq = 0
    while True:
        rows = _read(seq, lines, {"job": job_id, "allocation": allocation, "kinds": kind or ()})
        for row in rows:
            if json:
                print_json(event_view(row), lines=True)
            else:
                typer.echo(event_line(row))
            seq = row.seq
        if not follow:
            return
        time.sleep(FOLLOW_S)


def _read(after: int, newest: int, which: dict[str, Any]) -> Sequence[Any]:
    """The newest ones at first, then those after the last one printed."""
    from prompttuner.db import events as record

    store = open_store()
    if store is None:
        return []
    with store:
        if after:
            return store.query(lambda session: record.read_after(session, after, **which))
        return store.query(lambda session: record.latest(session, newest, **which)) if newest else []
