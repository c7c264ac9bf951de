"""``prompttuner db``: looking after the database."""

from __future__ import annotations

import typer

from prompttuner.cli import context
from prompttuner.cli.output import JsonFlag, print_json

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Look after the database.")


@app.callback()
def group() -> None:
    """Look after the database."""


@app.command()
def upgrade(json: JsonFlag = False) -> None:
    """Create the database, or bring its schema up to this version; a running controller is fenced off."""
    from prompttuner.db.place import parse_place
    from prompttuner.db.store import Store

    url = context.settings().database_url
    place = str(parse_place(url))
    before, after = Store.upgrade_at(url)
    if json:
        print_json({"database": place, "before": before, "after": after})
    elif before == after:
        typer.echo(f"{place} is at {after}: nothing to do")
    else:
        typer.echo(f"{place}: {before or 'empty'} -> {after}")
