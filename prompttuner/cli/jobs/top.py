"""``prompttuner top``: jobs, deadlines, GPUs and pool, live."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.output import print_table
from prompttuner.cli.jobs.views import summary_row
from prompttuner.cli.state.reading import open_store
from prompttuner.client.views import job_view
from prompttuner.errors import DatabaseError
from prompttuner.spec.when import format_duration
from prompttuner.words import Counted

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["app"]

app = typer.Typer()

JOB_COLUMNS = ["job", "name", "state", "iteration", "metric", "target", "deadline", "GPUs", "why"]
POOL_COLUMNS = ["allocation", "state", "pool", "job", "GPUs", "where", "for"]
SHOWN = 40


@app.command()
def top(
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Watch jobs, deadlines, GPUs and the pool in the terminal."""
    if once or not sys.stdout.isatty() or os.environ.get("TERM") in {None, "dumb", "unknown"}:
        line, jobs, pool = look()
        typer.echo(line)
        print_table(JOB_COLUMNS, jobs)
        print_table(POOL_COLUMNS, pool)
        return
    from rich.live import Live

    with Live(_screen(*look()), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            try:
                live.update(_screen(*look()), refresh=True)
            except DatabaseError as error:  # away for a moment: the last picture stays
                live.console.bell()
                live.update(_screen(str(error), [], []), refresh=True)


def look() -> tuple[str, list[list[str]], list[list[str]]]:
    """(one line of totals, rows of jobs, rows of allocations) as they are now."""
    now = time.time()
    store = open_store()
    if store is None:
        return "no jobs yet", [], []
    with store, store.read() as session:
        from prompttuner.db.queries import allocations, jobs

        counted = jobs.load_active(session)
        views = [job_view(job, now, context.settings().spool_dir) for job in jobs.most_urgent(session, SHOWN)]
        pool = list(allocations.load_live(session))
    endangered = sum(row.deadline_at is not None and (now > row.deadline_at or row.best_effort) for row in counted)
    line = (
        f"{time.strftime('%H:%M:%S')}  {Counted(len(counted), 'active job')}, "
        f"{sum(bool(row.members) for row in counted)} running, {endangered} late or given up on; "
        f"{Counted(sum(row.gpus for row in pool), 'GPU')} held or asked for, "
        f"{sum(row.gpus for row in pool if row.state == 'busy')} busy"
    )
    return line, [summary_row(view, now) for view in views], [_pool_row(row, now) for row in pool[:SHOWN]]


def _pool_row(row: Any, now: float) -> list[str]:
    held_for = format_duration(now - row.state_since)
    return [row.uuid[:8], row.state, row.pool, row.job_id or "", str(row.gpus), row.node or row.host or "", held_for]


def _screen(line: str, jobs: list[list[str]], pool: list[list[str]]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(line, style="bold")]
    for columns, rows in ((JOB_COLUMNS, jobs), (POOL_COLUMNS, pool)):
        table = Table(*columns, expand=True, header_style="bold", row_styles=["", "dim"])
        for row in rows:
            table.add_row(*(Text(cell, overflow="ellipsis", no_wrap=True) for cell in row))
        parts.append(table)
    return Group(*parts)
