"""Reading of profile files (JSON), the built-in ones and a lab's own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from prompttuner.errors import ConfigError
from prompttuner.policy.snapshot import PoolProfile

__all__ = ["builtin", "load_profile", "parse_profile", "stated"]

_TIMES = ("step_s", "queue_s", "start_s", "warm_s", "resize_s", "switch_s", "lookup_s")


def parse_profile(data: Mapping[str, Any], where: str) -> PoolProfile:
    """A profile from its JSON object. Raises ConfigError that names ``where`` and the field."""
    known = {"name", "speedup", "origin", *_TIMES}
    missing, unknown = sorted(known - set(data)), sorted(set(data) - known)
    if missing or unknown:
        told = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ConfigError(f"profile {where} {' and '.join(told)}")
    try:
        times = {key: float(data[key]) for key in _TIMES}
        speedup = tuple((int(n), float(gain)) for n, gain in data["speedup"])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"profile {where}: times are numbers, speedup is a list of [GPUs, gain] ({error})") from error
    bad = [key for key, value in times.items() if not (math.isfinite(value) and value >= 0)]
    if bad or times["step_s"] <= 0:
        raise ConfigError(f"profile {where}: {', '.join(bad) or 'step_s'} must be a time in seconds")
    sizes, gains = [n for n, _ in speedup], [gain for _, gain in speedup]
    if speedup[:1] != ((1, 1.0),) or sizes != sorted(set(sizes)) or gains != sorted(gains):
        raise ConfigError(f"profile {where}: speedup must begin with [1, 1.0] and grow in GPUs and gain")
    return PoolProfile(name=str(data["name"]), speedup=speedup, origin=str(data["origin"]), **times)


def load_profile(path: Path) -> PoolProfile:
    """A profile from a JSON file. Raises ConfigError."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"profile {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"profile {path} must be a JSON object")
    return parse_profile(data, str(path))


def builtin() -> dict[str, PoolProfile]:
    """The profiles that come with the package, by name."""
    found = {}
    for item in sorted(resources.files(__package__ or "prompttuner.profiles").iterdir(), key=lambda f: f.name):
        if item.name.endswith(".json"):
            profile = parse_profile(json.loads(item.read_text()), item.name)
            found[profile.name] = profile
    return found


def stated(llms: Iterable[str], given: Iterable[PoolProfile] = ()) -> dict[str, PoolProfile]:
    """For each LLM the given profile, else the built-in one of that name, else the built-in ``default`` renamed."""
    known = {**builtin(), **{p.name: p for p in given}}
    usual = known["default"]
    out = {}
    for llm in llms:
        times = {key: getattr(usual, key) for key in _TIMES}
        origin = f"the stated default profile ({usual.origin}): no profile of {llm} is known"
        out[llm] = known.get(llm) or PoolProfile(name=llm, speedup=usual.speedup, origin=origin, **times)
    return out
