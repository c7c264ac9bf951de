"""Fit a table to the width of a terminal: what cannot be shown is left out in a stated order, and ids are never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["STATE_STYLES", "Fit", "fitted"]

EDGE = 3
"""Characters between two columns: a blank, the line and a blank; one more line closes the table."""
LEAST_NOTE = 16
"""A shortened column that would get less room than this is left out before other columns are."""
ELLIPSIS = "…"

STATE_STYLES = {
    "running": "cyan",
    "done": "green",
    "exhausted": "yellow",
    "failed": "red",
    "rejected": "red",
    "stopped": "red",
    "cancelled": "dim",
    "held": "magenta",
}
"""Colour of a state's word: green went well, red did not, yellow is in between, dim is over and wanted so."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Which columns are shown, and their rows."""

    columns: list[str]
    rows: list[list[str]]
    left_out: list[str]
    """Columns that have values and went for want of room."""


def fitted(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, drop: Sequence[str], shorten: str | None = None
) -> Fit:
    """The table less as many columns as must go for it to fit into ``width`` characters.

    Args:
        columns: headings.
        rows: cells, as many as there are columns; each is one line.
        width: of the terminal.
        drop: columns that may go, the first one first; others stay whatever the width.
        shorten: a column whose texts may be cut at their end (with an ellipsis) before others go.
    """
    shown = [i for i in range(len(columns)) if any(row[i] for row in rows) or columns[i] not in drop]
    gone: list[str] = []
    order = [columns.index(name) for name in drop if name in columns]
    note = columns.index(shorten) if shorten in columns else -1

    def needs(index: int) -> int:
        longest = max([len(columns[index]), *(len(row[index]) for row in rows)])
        return min(longest, LEAST_NOTE) if index == note else longest

    while sum(needs(i) + EDGE for i in shown) + 1 > width:
        going = next((i for i in order if i in shown), None)
        if going is None:
            break
        shown.remove(going)
        gone.append(columns[going])
    room = width - 1 - sum(needs(i) + EDGE for i in shown if i != note) - EDGE
    cut = [[_cut(row[i], room) if i == note else row[i] for i in shown] for row in rows]
    return Fit([columns[i] for i in shown], cut, gone)


def _cut(text: str, room: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= room else line[: max(room - 1, 0)].rstrip() + ELLIPSIS
