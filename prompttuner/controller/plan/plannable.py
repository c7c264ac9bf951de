"""What a resolved spec must hold so that every tick to come can plan its job, whoever resolved it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prompttuner.controller.plan.iterations import remaining_iterations
from prompttuner.controller.plan.pools import pool_of
from prompttuner.errors import SpecError
from prompttuner.spec.job import MAX_PRIORITY
from prompttuner.spec.when import iso

__all__ = ["check_plannable", "point_in_time", "priority_of"]

MAX_COUNT = 1 << 31


def check_plannable(spec: Mapping[str, Any]) -> None:
    """Refuse a spec on which planning would fail in every tick: of another version, or written by hand.

    Raises:
        SpecError: a number that cannot be.
        KeyError, TypeError, ValueError: something is missing or of another kind.
    """
    pool_of(spec)
    target = spec["target"]
    str(target["metric"]), str(target["op"]), float(target["value"])
    remaining_iterations(spec, 0, [], None)
    counts = {name: _count(spec[name], name) for name in ("max_iterations", "batch_size")}
    least, most = (_count(spec.get(name) or 1, name) for name in ("min_gpus", "max_gpus"))
    if not 1 <= least <= most or min(counts.values()) < 1:
        raise SpecError(f"min_gpus {least}, max_gpus {most}, {counts}: no job can be planned with these")


def point_in_time(value: Any) -> float:
    """Unix seconds that can be shown as a date.

    Raises:
        SpecError: no date is meant by it.
    """
    try:
        iso(float(value))
    except (TypeError, ValueError, OverflowError, OSError):
        raise SpecError(f"{value!r} is no point in time (Unix seconds)") from None
    return float(value)


def priority_of(value: Any) -> int:
    """A priority within its bounds.

    Raises:
        SpecError: out of bounds.
    """
    number = int(value)
    if abs(number) > MAX_PRIORITY:
        raise SpecError(f"priority {number}: between -{MAX_PRIORITY} and {MAX_PRIORITY}, please")
    return number


def _count(value: Any, name: str) -> int:
    number = int(value)
    if abs(number) > MAX_COUNT:
        raise SpecError(f"{name} {number} is too large")
    return number
