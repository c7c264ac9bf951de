"""The position and letter operations that the small model's tasks are made of, with the phrasings of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["LETTERS", "LETTER_OPS", "POSITION_OPS", "Operation"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Operation:
    """A function on a list of single letters, and the ways in which an instruction may ask for it."""

    name: str
    apply: Callable[[list[str]], list[str]]
    phrasings: tuple[str, ...]


def _shift(by: int) -> Callable[[list[str]], list[str]]:
    """Replace each letter by the one ``by`` places further in the alphabet, which closes to a ring."""
    table = {letter: LETTERS[(index + by) % 26] for index, letter in enumerate(LETTERS)}
    return lambda letters: [table[letter] for letter in letters]


def _named(*operations: Operation) -> dict[str, Operation]:
    return {operation.name: operation for operation in operations}


POSITION_OPS: dict[str, Operation] = _named(
    Operation(
        "copy",
        lambda x: x,
        ("copy the letters", "keep the list", "write the letters again", "leave the order alone"),
    ),
    Operation(
        "reverse",
        lambda x: x[::-1],
        ("reverse the letters", "turn the list around", "write the letters backwards", "go from last to first"),
    ),
    Operation(
        "sort",
        sorted,
        ("sort the letters", "arrange the list", "put the letters in order", "go from low to high"),
    ),
    Operation(
        "sort_down",
        lambda x: sorted(x, reverse=True),
        (
            "sort the letters down",
            "arrange the list backwards",
            "put the letters in falling order",
            "go from high to low",
        ),
    ),
    Operation(
        "rotate_left",
        lambda x: x[1:] + x[:1],
        ("rotate the letters left", "put the first letter last", "turn the list left", "move the first to the end"),
    ),
    Operation(
        "rotate_right",
        lambda x: x[-1:] + x[:-1],
        ("rotate the letters right", "put the last letter first", "turn the list right", "move the last to the start"),
    ),
    Operation(
        "swap_ends",
        lambda x: [x[-1], *x[1:-1], x[0]] if len(x) > 1 else x,
        ("swap the ends", "exchange the first and the last", "swap first and last", "exchange both ends"),
    ),
    Operation(
        "double",
        lambda x: [letter for letter in x for _ in range(2)],
        ("double the letters", "write each letter twice", "repeat each letter", "say all letters twice"),
    ),
    Operation(
        "drop_first",
        lambda x: x[1:],
        ("drop the first letter", "remove the start", "leave out the first", "skip the first letter"),
    ),
    Operation(
        "drop_last",
        lambda x: x[:-1],
        ("drop the last letter", "remove the end", "leave out the last", "skip the last letter"),
    ),
    Operation(
        "every_second",
        lambda x: x[::2],
        ("keep every second letter", "take every other letter", "skip every second", "thin out the list"),
    ),
)

LETTER_OPS: dict[str, Operation] = _named(
    Operation("same", lambda x: x, ("change nothing", "as they are", "with same letters", "without changes")),
    Operation(
        "upper",
        lambda x: [letter.upper() for letter in x],
        ("in capitals", "as upper case", "make them big", "with capital letters"),
    ),
    Operation("next", _shift(1), ("shift up one", "take the next of each", "one step forward", "add one to each")),
    Operation(
        "next2", _shift(2), ("shift up two", "take the second next of each", "two steps forward", "add two to each")
    ),
    Operation("previous", _shift(-1), ("shift down one", "take the one before each", "one step back", "subtract one")),
    Operation(
        "previous2", _shift(-2), ("shift down two", "take the second before each", "two steps back", "subtract two")
    ),
)
