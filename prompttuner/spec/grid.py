"""Sweeps: ``lr=1e-2,3e-2,seed=0,1`` makes one spec for each combination."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from prompttuner.errors import SpecError
from prompttuner.spec.job import ALIASES, JobSpec, nearest_key

__all__ = ["MAX_GRID", "expand_grid", "parse_grid"]

MAX_GRID = 1000
"""More jobs than this in one sweep are taken for a mistake."""

_KEY = re.compile(r"([A-Za-z_]+)=(?!=)(.*)", re.DOTALL)
_PLURAL = frozenset({"setup", "trust_remote_code"})
"""Fields that are lists themselves: a comma would be ambiguous."""


def parse_grid(texts: Iterable[str]) -> dict[str, list[str]]:
    """Read ``key=value,value,key=value`` (one text or several) into values by field, in the order written.

    Raises:
        SpecError: no key, an unknown key, a key without values, or one given twice.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        current: str | None = None
        for part in text.split(","):
            match = _KEY.fullmatch(part.strip())
            if match:
                current = _field(match.group(1), text)
                if current in grid:
                    raise SpecError(f"grid {text!r}: {current!r} is given twice")
                grid[current] = []
            if current is None:
                raise SpecError(f"grid {text!r}: write key=value,value such as lr=1e-2,3e-2,seed=0,1")
            value = match.group(2).strip() if match else part.strip()
            if not value:
                raise SpecError(f"grid {text!r}: an empty value for {current!r}")
            if value in grid[current]:
                raise SpecError(f"grid {text!r}: {value!r} is given twice for {current!r}")
            grid[current].append(value)
    return grid


def expand_grid(values: Mapping[str, Any], grid: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """One mapping for each combination, the last key changing fastest; each gets a name that tells it from the others.

    Raises:
        SpecError: more than ``MAX_GRID`` combinations.
    """
    combinations = list(itertools.islice(itertools.product(*grid.values()), MAX_GRID + 1))
    if len(combinations) > MAX_GRID:
        raise SpecError(f"the grid has more than {MAX_GRID} combinations; make it smaller")
    base = {ALIASES.get(key, key): value for key, value in values.items()}
    stem = base.get("name") or "sweep"
    specs = []
    for combination in combinations:
        chosen = dict(zip(grid, combination, strict=True))
        words = [re.sub(r"[^\w.+-]+", "_", f"{_short(key)}{value}") for key, value in chosen.items() if key != "name"]
        name = "-".join([chosen.get("name", stem), *words])[:100]
        specs.append({**base, **chosen, "name": name} if grid else dict(base))
    return specs


def _field(key: str, text: str) -> str:
    name = ALIASES.get(key, key)
    known = list(JobSpec.model_fields)
    if name not in known:
        near = nearest_key(key, known)
        raise SpecError(f"grid {text!r}: unknown key {key!r}" + (f"; did you mean {near!r}?" if near else ""))
    if name in _PLURAL:
        raise SpecError(f"grid {text!r}: {name!r} is a list and cannot be swept")
    return name


def _short(key: str) -> str:
    return next((alias for alias, name in ALIASES.items() if name == key), key)
