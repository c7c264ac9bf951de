"""Family *numbers*: digits, words, ordinals and Roman numerals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from prompttuner.realmodel.tasks.packages import require
from prompttuner.realmodel.tasks.pairs import Pair

__all__ = ["NUMBERS"]

LAST = 400
ROMAN = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


@cache
def _engine() -> Any:
    require("inflect")
    import inflect

    return inflect.engine()


def _words(number: int) -> str:
    return str(_engine().number_to_words(number, andword="")).replace(",", "")


def _roman(number: int) -> str:
    made = ""
    for value, letters in ROMAN:
        made += letters * (number // value)
        number %= value
    return made


def _each(given: Callable[[int], str], wanted: Callable[[int], str]) -> Callable[[], Iterator[Pair]]:
    def make() -> Iterator[Pair]:
        for number in range(1, LAST):
            yield Pair(given(number), wanted(number), str(number))

    return make


NUMBERS = {
    "number in words": _each(str, _words),
    "number in digits": _each(_words, str),
    "ordinal": _each(str, lambda n: str(_engine().ordinal(n))),
    "ordinal in words": _each(str, lambda n: str(_engine().ordinal(_words(n)))),
    "number of Roman numeral": _each(_roman, str),
    "even or odd": _each(str, lambda n: "even" if n % 2 == 0 else "odd"),
}
