"""``run`` and ``tick``: being the controller."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.output import JsonFlag, print_json
from prompttuner.cli.jobs.views import event_line
from prompttuner.client.views import event_view
from prompttuner.words import Counted

if TYPE_CHECKING:
    from prompttuner.controller.resources import State
    from prompttuner.controller.tick_report import TickReport

__all__ = ["app"]

app = typer.Typer()


@app.command()
def run(
    until_done: Annotated[bool, typer.Option("--until-done", help="End once no job is queued or running.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing of what happens.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for another controller to let go.")] = 2.0,
    json: JsonFlag = False,
) -> None:
    """Be the controller in the foreground."""
    from prompttuner.controller import run as controller

    settings = context.settings()
    if not quiet and not json:
        typer.echo(
            f"controller: {settings.backend} backend, policy {settings.policy}, a tick every {settings.tick_s:g} s"
        )
    reporter = None if quiet else Reporter(json)
    controller.run(settings, reporter, wait, until_done=until_done)
    if not quiet and not json:
        typer.echo("no job is queued or running" if until_done else "ended by SIGTERM; jobs go on")


@app.command()
def tick(json: JsonFlag = False) -> None:
    """Make one pass of the controller."""
    from prompttuner.controller.run import tick_once

    report = tick_once(context.settings())
    if json:
        print_json(
            {
                "requests": report.requests,
                "jobs": report.jobs,
                "allocations": report.allocations,
                "submitted": report.submitted,
                "actions": report.actions,
                "wake_at": report.wake_at,
                "seconds": report.seconds,
            }
        )
        return
    for action in report.actions:
        typer.echo(action)
    typer.echo(
        f"{Counted(report.requests, 'request')}, {Counted(report.jobs, 'active job')}, "
        f"{Counted(report.allocations, 'allocation')}, "
        f"{report.submitted} asked for, {report.seconds:.2f} s"
    )


class Reporter:
    """Prints the events that each tick added."""

    def __init__(self, json: bool) -> None:
        self.json = json
        self.seq: int | None = None

    def __call__(self, state: State, report: TickReport) -> None:
        from prompttuner.db.queries import events

        if self.seq is None:  # what happened before this controller began is old news
            began = time.time() - report.seconds - 1.0
            new = (row.seq - 1 for row in state.query(events.latest) if row.at >= began)
            self.seq = next(new, state.query(events.last_seq))
        after = self.seq
        rows = state.query(lambda session: events.read_after(session, after))
        for row in rows:
            if self.json:
                print_json(event_view(row).to_json(), lines=True)
            else:
                typer.echo(event_line(row))
            self.seq = row.seq
