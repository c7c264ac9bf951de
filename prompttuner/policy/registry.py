"""Policies by name, and variants of them by words such as ``prompttuner:resize=off``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any, TypeAlias, get_type_hints

from prompttuner.errors import ConfigError
from prompttuner.policy.contract.plan import Policy

__all__ = ["POLICIES", "get", "switches_of", "variant"]

POLICIES = {
    "edf": ("prompttuner.policy.baselines.edf", "Edf"),
    "elasticflow": ("prompttuner.policy.baselines.elasticflow", "ElasticFlow"),
    "elasticflow-fixed": ("prompttuner.policy.baselines.elasticflow", "ElasticFlowFixed"),
    "infless": ("prompttuner.policy.baselines.infless", "Infless"),
    "sbatch": ("prompttuner.policy.baselines.sbatch", "Sbatch"),
    "prompttuner": ("prompttuner.policy.prompttuner.policy", "PromptTuner"),
}
"""Name -> (module, class). Modules are imported when asked for."""
SwitchValue: TypeAlias = bool | int | float | str

_TRUTH = {"on": True, "off": False}


def get(name: str, **switches: SwitchValue) -> Policy:
    """The policy of this name, with its switches set. Raises ConfigError for an unknown name or switch."""
    return _make(name, switches)


def variant(words: str) -> Policy:
    """A policy in words: ``NAME`` or ``NAME:SWITCH=VALUE[:SWITCH=VALUE...]``; its ``name`` is those words.

    A value is ``on`` or ``off``, or a number, as the switch's type asks for.

    Raises:
        ConfigError: an unknown policy or switch, or a value that the switch cannot take; says what can be chosen.
    """
    name, *settings = (word.strip() for word in words.split(":"))
    kinds = switches_of(name)
    switches: dict[str, SwitchValue] = {}
    for setting in settings:
        switch, _, value = (word.strip() for word in setting.partition("="))
        if switch not in kinds:
            raise ConfigError(f"policy '{name}' has no switch '{switch}': choose one of {', '.join(kinds)}")
        switches[switch] = _value(f"{name}:{switch}", kinds[switch], value)
    return _make(name, switches | ({"name": ":".join([name, *settings])} if settings else {}))


def switches_of(name: str) -> Mapping[str, type]:
    """Switches of a policy and what they take: bool, int or float."""
    maker = _maker(name)
    hints = get_type_hints(maker)
    kinds = {field.name: hints[field.name] for field in fields(maker) if field.name != "name"}
    return {key: kind if kind in (bool, int) else float for key, kind in kinds.items()}


def _maker(name: str) -> Any:
    if name not in POLICIES:
        raise ConfigError(f"there is no policy '{name}': choose one of {', '.join(sorted(POLICIES))}")
    module, kind = POLICIES[name]
    return getattr(import_module(module), kind)


def _make(name: str, switches: Mapping[str, SwitchValue]) -> Policy:
    try:
        policy: Policy = _maker(name)(**switches)
    except TypeError as error:
        known = ", ".join(switches_of(name))
        raise ConfigError(f"policy '{name}' has no such switch ({error}); it has: {known}") from error
    return policy


def _value(switch: str, kind: type, text: str) -> SwitchValue:
    if kind is bool:
        if text not in _TRUTH:
            raise ConfigError(f"{switch} is on or off, as in {switch}=off; not {text!r}")
        return _TRUTH[text]
    try:
        number: float = kind(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        whole = "whole number" if kind is int else "number"
        raise ConfigError(f"{switch} takes a {whole} of 0 or more, as in {switch}=1; not {text!r}")
    return number
