"""Reading of profile files (JSON), the built-in ones and a lab's own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from prompttuner.errors import ConfigError
from prompttuner.files import write_bytes
from prompttuner.policy.contract.snapshot import PoolProfile

__all__ = ["builtin", "load_profile", "load_profiles", "parse_profile", "remarks", "save_profile", "stated"]

_TIMES = ("step_s", "queue_s", "start_s", "warm_s", "resize_s", "switch_s", "lookup_s")


def parse_profile(data: Mapping[str, Any], where: str) -> PoolProfile:
    """A profile from its JSON object. Raises ConfigError that names ``where`` and the field."""
    known = {"name", "speedup", "origin", *_TIMES}
    missing, unknown = sorted(known - set(data)), sorted(set(data) - known)
    if missing or unknown:
        told = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ConfigError(f"profile {where} {' and '.join(told)}")
    if not isinstance(data["name"], str) or not data["name"].strip():
        raise ConfigError(f"profile {where}: name must be the LLM's name")
    try:
        times = {key: _figure(data[key]) for key in _TIMES}
        speedup = tuple((_whole(n), _figure(gain)) for n, gain in data["speedup"])
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"profile {where}: times are numbers, speedup is a list of [GPUs, gain] ({error})") from error
    bad = [key for key, value in times.items() if value < 0]
    if bad or times["step_s"] <= 0:
        raise ConfigError(f"profile {where}: {', '.join(bad) or 'step_s'} must be a time in seconds")
    sizes, gains = [n for n, _ in speedup], [gain for _, gain in speedup]
    if speedup[:1] != ((1, 1.0),) or sizes != sorted(set(sizes)) or gains != sorted(gains):
        raise ConfigError(f"profile {where}: speedup must begin with [1, 1.0] and grow in GPUs and gain")
    return PoolProfile(name=data["name"], speedup=speedup, origin=str(data["origin"]), **times)


def load_profile(path: Path) -> PoolProfile:
    """A profile from a JSON file. Raises ConfigError."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"profile {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"profile {path} must be a JSON object")
    return parse_profile(data, str(path))


def load_profiles(paths: Iterable[Path]) -> list[PoolProfile]:
    """The profiles of these files, and of every ``*.json`` in those that are folders.

    Raises:
        ConfigError: a broken profile, a folder without any, or two of one LLM.
    """
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"there are no profiles (*.json) in {path}")
        files += inside
    found: dict[str, tuple[PoolProfile, Path]] = {}
    for file in files:
        profile = load_profile(file)
        if profile.name in found:
            raise ConfigError(f"{file} and {found[profile.name][1]} are both profiles of {profile.name}")
        found[profile.name] = (profile, file)
    return [profile for profile, _ in found.values()]


def save_profile(folder: Path, profile: PoolProfile) -> Path:
    """Write the profile as ``<name>.json`` into the folder; returns the path."""
    values: dict[str, Any] = {"name": profile.name, "speedup": [list(pair) for pair in profile.speedup]}
    path = folder / (re.sub(r"[^\w.-]", "_", profile.name) + ".json")
    values.update({key: getattr(profile, key) for key in _TIMES}, origin=profile.origin)
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())
    return path


def builtin() -> dict[str, PoolProfile]:
    """The profiles that come with the package, by name."""
    found = {}
    for item in sorted(resources.files(__package__ or "prompttuner.profiles").iterdir(), key=lambda f: f.name):
        if item.name.endswith(".json"):
            profile = parse_profile(json.loads(item.read_text()), item.name)
            found[profile.name] = profile
    return found


def remarks(llms: Iterable[str], given: Iterable[PoolProfile]) -> list[str]:
    """What a user should know of the profiles that ``stated`` chooses: LLMs without one, and files of no use."""
    wanted, mine = set(llms), {profile.name for profile in given}
    lacking, idle = sorted(wanted - mine - set(builtin())), sorted(mine - wanted)
    out = []
    if lacking:
        out.append(f"no profile of {', '.join(lacking)}: the stated default stands in (--profile gives one)")
    if idle:
        out.append(f"the profile of {', '.join(idle)} is not used: the trace has {', '.join(sorted(wanted))}")
    return out


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


def _figure(value: Any) -> float:
    if isinstance(value, bool | str) or not math.isfinite(float(value)):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number of GPUs")
    return value
