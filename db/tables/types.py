"""Column types that store the same value on SQLite and Postgres, whatever a caller hands in."""

from __future__ import annotations

import json
import math
from typing import Any

from sqlalchemy import JSON, BigInteger, Dialect, Double, Integer, Text
from sqlalchemy.types import TypeDecorator

__all__ = ["CleanText", "Number", "Real", "dump_json", "json_column"]


class CleanText(TypeDecorator[str]):
    """Text without what one of the databases refuses: NUL (Postgres) and lone surrogates (both)."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """The value as it is stored, whatever number or text a caller hands in."""
        if value is None:
            return None
        text = str(value)
        if text.isascii() and "\0" not in text:
            return text
        return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


class Real(TypeDecorator[float]):
    """A double; NaN becomes NULL (SQLite would do so, Postgres would not), numpy scalars become floats."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> float | None:  # noqa: ARG002
        """The value as it is stored, whatever number or text a caller hands in."""
        if value is None:
            return None
        number = float(value)
        return None if math.isnan(number) else number


class Number(TypeDecorator[int]):
    """A 64-bit integer; numpy integers become ints (SQLite would store them as blobs)."""

    impl = BigInteger().with_variant(Integer(), "sqlite")
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> int | None:  # noqa: ARG002
        """The value as it is stored, whatever number or text a caller hands in."""
        return None if value is None else int(value)


def json_column() -> JSON:
    """JSON text on both; Python's None is SQL's NULL."""
    return JSON(none_as_null=True)


def dump_json(value: Any) -> str:
    """Strict JSON: NaN and Infinity, which Postgres refuses, become null; numpy values become plain ones."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"), default=_plain)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    for method in ("tolist", "isoformat"):
        if hasattr(value, method):
            return _finite(getattr(value, method)())
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be kept as JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
