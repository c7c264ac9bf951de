"""Family *countries*: capital, continent, currency, demonym, code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from prompttuner.realmodel.tasks.packages import data_folder
from prompttuner.realmodel.tasks.pairs import Pair

__all__ = ["COUNTRIES"]

LEAST_PEOPLE = 300_000
"""Smaller countries are left out: hardly any small LLM knows their capitals."""


@cache
def _countries() -> tuple[dict[str, Any], ...]:
    files = sorted((data_folder("countryinfo") / "data").glob("*.json"))
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    known = [row for row in rows if row.get("name") and (row.get("population") or 0) >= LEAST_PEOPLE]
    return tuple(sorted(known, key=lambda row: str(row["name"])))


def _of(wanted: Callable[[dict[str, Any]], str], *, back: bool = False) -> Callable[[], Iterator[Pair]]:
    def make() -> Iterator[Pair]:
        for row in _countries():
            name, value = str(row["name"]), wanted(row)
            if value and value.isascii() and name.isascii():
                yield Pair(value, name, name) if back else Pair(name, value, name)

    return make


def _text(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: str(row.get(key) or "")


COUNTRIES = {
    "capital": _of(_text("capital")),
    "country of the capital": _of(_text("capital"), back=True),
    "continent": _of(_text("region")),
    "currency": _of(lambda row: str((row.get("currencies") or [""])[0])),
    "demonym": _of(_text("demonym")),
    "country code": _of(lambda row: str(row.get("ISO", {}).get("alpha2") or "")),
}
