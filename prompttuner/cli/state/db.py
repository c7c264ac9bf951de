"""``prompttuner db``: looking after the database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.output import JsonFlag, print_json, print_pairs, print_table
from prompttuner.errors import DatabaseError, SpecError
from prompttuner.words import Counted

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Look after the database.")


@app.callback()
def group() -> None:
    """Look after the database."""


@app.command()
def upgrade(
    backup: Annotated[
        bool, typer.Option("--backup/--no-backup", help="Save the state in the home folder before it is changed.")
    ] = True,
    json: JsonFlag = False,
) -> None:
    """Create the database, or bring its schema up to this version; stop the controller first."""
    from prompttuner.db.store.place import parse_place
    from prompttuner.db.upkeep import upgrading

    settings = context.settings()
    settings.make_home()
    url = settings.database_url
    place = str(parse_place(url))
    done = upgrading.upgrade(url, settings.home, save=backup)
    saved = None if done.saved is None else str(done.saved)
    if json:
        print_json({"database": place, "before": done.before, "after": done.after, "saved": saved})
    elif done.before == done.after:
        typer.echo(f"{place} is at {done.after}: nothing to do")
    else:
        kept = "" if saved is None else f" (as it was: {saved})"
        typer.echo(f"{place}: {done.before or 'empty'} -> {done.after}{kept}")


@app.command()
def check(json: JsonFlag = False) -> None:
    """Look for damage, a wrong schema and rows that contradict each other."""
    from prompttuner.db.store.store import Store
    from prompttuner.db.upkeep import integrity

    settings = context.settings()
    with Store.open(settings.database_url, read_only=True) as store:
        findings = integrity.check(store)
        place = str(store.place)
    if json:
        print_json({"database": place, "findings": [{"serious": one.serious, "text": one.text} for one in findings]})
    elif findings:
        print_table(["", "finding"], [["ERROR" if one.serious else "advice", one.text] for one in findings], place)
    else:
        typer.echo(f"{place}: all is well")
    serious = sum(one.serious for one in findings)
    if serious:
        raise DatabaseError(
            f"{Counted(serious, 'serious finding')}; `prompttuner db backup` keeps a copy before you mend anything"
        )


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="A new SQLite file.")],
    json: JsonFlag = False,
) -> None:
    """Write a consistent copy to a new SQLite file, while a controller may run."""
    from prompttuner.db.upkeep import transfer

    transfer.backup(context.settings().database_url, file.absolute())
    size = file.stat().st_size
    if json:
        print_json({"file": str(file.absolute()), "bytes": size})
    else:
        typer.echo(f"{file}: {size / 1e6:.2f} MB")


@app.command()
def copy(
    to: Annotated[str, typer.Option(help="Empty database: a file, or postgresql://user@host/name.")],
    json: JsonFlag = False,
) -> None:
    """Copy the whole state into another, empty database, such as from SQLite to Postgres."""
    from prompttuner.config.mask import mask_text
    from prompttuner.db.store.place import parse_place
    from prompttuner.db.upkeep import transfer

    if mask_text(to) != to:
        raise SpecError("a password on the command line can be read by others: put it into ~/.pgpass or PGPASSWORD")
    counts = transfer.copy(context.settings().database_url, to)
    path = parse_place(to).path
    to = to if path is None else str(path)  # whatever folder the next command runs in
    if json:
        print_json({"to": to, "rows": counts})
        return
    print_pairs({table: str(Counted(rows, "row")) for table, rows in counts.items()})
    typer.echo(f'Copied. To use it, set: database = "{to}"')


@app.command()
def adopt(json: JsonFlag = False) -> None:
    """Give the database to this home's spool, after the one that it went with is gone for good."""
    from prompttuner.db.queries import binding
    from prompttuner.db.store.store import Store

    settings = context.settings()
    with Store.open(settings.database_url, notes_dir=settings.home) as store:
        ownership = store.acquire(ttl_s=settings.owner_expiry_s)
        before = store.query(binding.bound_to)
        store.transact(ownership, binding.unbind)
        store.release(ownership)
        place = str(store.place)
    if json:
        print_json({"database": place, "before": None if before is None else before[1]})
    else:
        typer.echo(f"{place}: the spool of the next controller is its own from now on")
