"""The target of a job: a metric, a direction and a value."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, PlainSerializer

from prompttuner.protocol.target import Target

__all__ = ["METRICS", "Target", "TargetField", "parse_target"]

METRICS: dict[str, str] = {"loss": "<=", "exact_match": ">=", "rougeL": ">="}
"""Known metrics with the only direction in which each of them is an improvement."""

_FORM = re.compile(r"\s*([A-Za-z_]+)\s*(<=|>=|<|>|==|=)\s*(\S+)\s*")
_USAGE = "write it like loss<=0.1, exact_match>=0.9 or rougeL>=0.4"


def parse_target(text: str) -> Target:
    """Read ``metric<=value`` or ``metric>=value``.

    Raises:
        ValueError: the text is nonsense; the message says what to write.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"target {text!r} is not a metric, <= or >=, and a number; {_USAGE}")
    word, op, number = match.groups()
    by_lower = {name.lower(): name for name in METRICS}
    metric = by_lower.get(word.lower())
    if metric is None:
        raise ValueError(f"target {text!r}: unknown metric {word!r}; {_USAGE}")
    if op != METRICS[metric]:
        raise ValueError(f"target {text!r}: {metric} improves towards {METRICS[metric]}; {_USAGE}")
    try:
        value = float(number)
    except ValueError:
        raise ValueError(f"target {text!r}: {number!r} is not a number; {_USAGE}") from None
    _check_value(metric, value, text)
    return Target.expect({"metric": metric, "op": op, "value": value})


def _check_value(metric: str, value: float, text: str) -> None:
    if not math.isfinite(value):
        raise ValueError(f"target {text!r}: the value must be a finite number")
    if metric == "loss":
        if value <= 0:
            raise ValueError(f"target {text!r}: a loss is above 0, it cannot reach {value:g}")
    elif not 0 < value <= 1:
        hint = f"; did you mean {metric}>={value / 100:g}?" if 1 < value <= 100 else ""
        raise ValueError(f"target {text!r}: {metric} is a share above 0 and up to 1{hint}")


def _coerce(value: Any) -> Any:
    if isinstance(value, str):
        return parse_target(value)
    if isinstance(value, dict) and set(value) == {"metric", "op", "value"}:
        return parse_target(f"{value['metric']}{value['op']}{value['value']}")
    if isinstance(value, Target):
        return value
    raise ValueError(f"a target is text; {_USAGE}")


TargetField: TypeAlias = Annotated[
    Target, BeforeValidator(_coerce), PlainSerializer(lambda target: target.to_json(), return_type=dict)
]
"""A pydantic field that takes ``"loss<=0.1"`` as well as ``{"metric", "op", "value"}``."""
