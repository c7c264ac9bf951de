"""How data is printed (tables on a terminal, plain aligned columns elsewhere, JSON where asked for) and written."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from prompttuner.errors import PromptTunerError

__all__ = ["JsonFlag", "check_place", "print_json", "print_pairs", "print_table", "writing"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

JsonFlag: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""Use as ``json: JsonFlag = False`` in every command that prints data."""


def print_json(value: Any, lines: bool = False) -> None:
    """One JSON document, on one line if ``lines`` (or off a terminal).

    Infinite and undefined numbers, which JSON has not, become null; paths become text.
    """
    indent = 2 if sys.stdout.isatty() and not lines else None
    typer.echo(json.dumps(_plain(value), indent=indent, default=str))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    title: str | None = None,
    *,
    drop: Sequence[str] = (),
    shorten: str | None = None,
) -> None:
    """A table; off a terminal: aligned columns, two blanks apart, nothing cut off.

    On a terminal that is too narrow, columns of ``drop`` go in that order, and texts of ``shorten`` are cut to one
    line; without ``drop`` all columns stay and long cells are folded.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_on_terminal(list(columns), cells, title, drop, shorten)
        return
    if title:
        typer.echo(title)
    lines = [list(columns), *([cell.replace("\n", " ") for cell in row] for row in cells)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_on_terminal(
    columns: list[str], cells: list[list[str]], title: str | None, drop: Sequence[str], shorten: str | None
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from prompttuner.cli.frame.fitting import STATE_STYLES, fitted

    console = Console()
    left_out: list[str] = []
    if drop:
        fit = fitted(columns, cells, console.width, drop, shorten)
        columns, cells, left_out = fit.columns, fit.rows, fit.left_out
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=bool(drop))
    for row in cells:
        styles = (
            STATE_STYLES.get(cell, "") if name == "state" else "" for name, cell in zip(columns, row, strict=True)
        )
        table.add_row(*(Text(cell, style) for cell, style in zip(row, styles, strict=True)))
    console.print(table)
    if left_out:
        console.print(f"not shown at this width: {', '.join(left_out)}", style="dim")


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """Name and value, one a line; names without a value are left out."""
    shown = {key: value for key, value in pairs.items() if value is not None and value != ""}
    width = max((len(key) for key in shown), default=0)
    for key, value in shown.items():
        typer.echo(f"{key.ljust(width)}  {value}")


@contextmanager
def writing(path: Path, option: str = "") -> Iterator[None]:
    """While the file or folder is written that the user has named, or may name by ``option``.

    Raises:
        PromptTunerError: it cannot be; names it as the user did, and says what to do.
        OSError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        what = f"make the folder {path.parent} first, or " if error.errno == errno.ENOENT else ""
        place = f"another place with {option}" if option else "another place"
        raise PromptTunerError(f"cannot write {path}: {error.strerror or error}; {what}name {place}") from None


def check_place(path: Path, option: str) -> None:
    """Ahead of long work: whether there is a place for the file that is to hold what comes of it.

    Raises:
        PromptTunerError: there is none.
    """
    from tempfile import TemporaryFile

    with writing(path, option):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not path.exists():
            TemporaryFile(dir=path.parent).close()
        elif not os.access(path, os.W_OK):  # not opened: it may be a pipe
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
