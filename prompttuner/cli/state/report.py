"""``prompttuner report``: one HTML page about what happened."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.output import JsonFlag, print_json, print_pairs, writing
from prompttuner.cli.state.reading import open_store
from prompttuner.config.mask import mask_text
from prompttuner.errors import NotFound, SpecError

if TYPE_CHECKING:
    from prompttuner.report.data import ReportData

__all__ = ["app"]

app = typer.Typer()


@app.command()
def report(
    since: Annotated[str, typer.Option(help="How far back to look in the database: 90m, 24h, 7d.")] = "24h",
    log: Annotated[Path | None, typer.Option(help="A simulation's log instead of the database.")] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("prompttuner-report.html"),
    png: Annotated[Path | None, typer.Option(help="Also write each chart as PNG into this folder.")] = None,
    json: JsonFlag = False,
) -> None:
    """Write one HTML page: GPUs over time, deadlines met, cost, every job."""
    from prompttuner.report.data import load_data
    from prompttuner.report.page import summary, write_page

    data = load_data(log) if log is not None else _live(since)
    files = []
    if png is not None:
        from prompttuner.report.png import write_pngs

        with writing(png, "--png"):
            files = write_pngs(png, data)
    with writing(out, "--out"):
        write_page(out, data)
    if json:
        print_json({"page": str(out), "png": [str(path) for path in files], **summary(data)})
        return
    print_pairs({**summary(data), "page": str(out), "png": f"{len(files)} in {png}" if files else ""})


def _live(since: str) -> ReportData:
    """The database's jobs, allocations and leases since then.

    Raises:
        SpecError: ``since`` is not a duration.
        NotFound: there is no database.
    """
    from prompttuner.report.live import from_database
    from prompttuner.spec.when import parse_duration

    seconds = parse_duration(since)
    if seconds is None or seconds <= 0:
        raise SpecError(f"--since {since}: write a duration such as 90m, 24h or 7d")
    url = mask_text(context.settings().database_url)
    store = open_store()
    if store is None:
        raise NotFound(f"there is no database at {url} yet: nothing was ever submitted")
    now = time.time()
    with store, store.read() as session:
        return from_database(session, now, now - seconds, f"{url}, the last {since}")
