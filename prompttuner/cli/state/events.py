"""``prompttuner events``: the record of what happened and why."""

from __future__ import annotations

import select
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prompttuner.cli.frame.output import JsonFlag, print_json
from prompttuner.cli.jobs.views import event_line
from prompttuner.cli.state.reading import one_job, open_store
from prompttuner.client.views import event_view
from prompttuner.errors import DatabaseError

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
    which = {"job": job_id, "allocation": allocation, "kinds": kind or ()}
    rows, seq = _newest(lines, which)
    _show(rows, json)
    away = ""
    while follow and _is_read():
        time.sleep(FOLLOW_S)
        try:
            rows, away = _after(seq, which), ""
        except DatabaseError as error:  # for a moment, perhaps: whoever follows waits
            if str(error) != away:
                away = str(error)
                sys.stderr.write(f"warning: {error}; trying again\n")
            continue
        _show(rows, json)
        seq = rows[-1].seq if rows else seq


def _is_read() -> bool:
    """False once whoever read our output through a pipe (``head``) has gone: nothing may happen for hours."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)
    except (OSError, ValueError):  # no real file
        return True
    return not any(state & select.POLLERR for _, state in poll.poll(0))


def _show(rows: Sequence[Any], json: bool) -> None:
    for row in rows:
        if json:
            print_json(event_view(row).to_json(), lines=True)
        else:
            typer.echo(event_line(row))


def _newest(number: int, which: dict[str, Any]) -> tuple[Sequence[Any], int]:
    """The newest events, oldest first, and the number of the last one that was there."""
    from prompttuner.db.queries import events as record

    store = open_store()
    if store is None:
        return [], 0
    with store, store.read() as session:
        return record.latest(session, number, **which) if number else [], record.last_seq(session)


def _after(seq: int, which: dict[str, Any]) -> Sequence[Any]:
    from prompttuner.db.queries import events as record

    store = open_store()
    if store is None:
        return []
    with store:
        return store.query(lambda session: record.read_after(session, seq, **which))
