"""Reads the layers: defaults < system < user < project < environment < flags, and remembers who said what."""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

from prompttuner.config.settings import ENV_PREFIX, FORMER_NAMES, Settings
from prompttuner.errors import ConfigError
from prompttuner.spec.job import nearest_key
from prompttuner.spec.load import explain_validation

__all__ = [
    "SYSTEM_CONFIG",
    "Layers",
    "check_file",
    "find_project_config",
    "flat_settings",
    "is_pyproject",
    "known_settings",
    "load_layers",
    "load_settings",
]

SYSTEM_CONFIG = Path("/etc/prompttuner/config.toml")
DEFAULT = "default"
ROOT_UID = 0
_PATHS = frozenset({"home", "database", "spool", "bank_dirs", "metrics_file", "slurm.templates"})
_SQLITE = "sqlite:///"


@dataclass(frozen=True, slots=True)
class Layers:
    """Settings with the origin of each value."""

    settings: Settings
    origins: Mapping[str, str]
    """Dotted name -> ``default``, a file's path, an environment variable, or ``flag``."""
    notes: tuple[str, ...] = field(default=())
    """Warnings about layers that were left out."""


def load_settings(flags: Mapping[str, Any] | None = None, cwd: Path | None = None) -> Settings:
    """The settings in force. ``flags`` are dotted or nested names; those that are None count as not given.

    Raises:
        ConfigError: an unknown key, a broken file or a value that cannot be right, with its origin.
    """
    return load_layers(flags, cwd).settings


def load_layers(flags: Mapping[str, Any] | None = None, cwd: Path | None = None) -> Layers:
    """As ``load_settings``, with the origin of each value."""
    flag_values = {key: value for key, value in _flatten(flags or {}) if value is not None}
    env_values = dict(_flatten(_environment()))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    notes: list[str] = []

    def add(layer: Mapping[str, Any], origin: str | None) -> None:
        for name, value in layer.items():
            key = FORMER_NAMES.get(name, name)
            values[key] = value
            origins[key] = origin or f"environment {ENV_PREFIX}{name.replace('.', '__').upper()}"

    system = _file_layer(SYSTEM_CONFIG)
    add(system, str(SYSTEM_CONFIG))
    home = flag_values.get("home") or env_values.get("home") or system.get("home") or "~/.prompttuner"
    user_file = Path(home).expanduser().absolute() / "config.toml"
    user = _file_layer(user_file)
    if "home" in user:
        raise ConfigError(
            f"{user_file}: 'home' cannot be set in the file that lies in it; set {ENV_PREFIX}HOME instead"
        )
    add(user, str(user_file))
    project = find_project_config(cwd or Path.cwd())
    if project is not None:
        problem = _foreign(project)
        if problem:
            notes.append(problem)
        else:
            add(_file_layer(project), str(project))
    add(env_values, None)
    add(flag_values, "flag")
    settings = _validate(values, origins)
    return Layers(settings, {key: origins.get(key, DEFAULT) for key, _ in flat_settings(settings)}, tuple(notes))


def flat_settings(settings: Settings) -> list[tuple[str, Any]]:
    """Every setting by dotted name, with its value."""
    pairs: list[tuple[str, Any]] = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            pairs.extend((f"{name}.{key}", getattr(value, key)) for key in type(value).model_fields)
        else:
            pairs.append((name, value))
    return pairs


def find_project_config(start: Path) -> Path | None:
    """The nearest ``prompttuner.toml``, or ``pyproject.toml`` with a ``[tool.prompttuner]``, from ``start`` upward."""
    for folder in [start.absolute(), *start.absolute().parents]:
        own = folder / "prompttuner.toml"
        if own.is_file():
            return own
        shared = folder / "pyproject.toml"
        if shared.is_file() and _in_pyproject(shared):
            return shared
    return None


def _in_pyproject(path: Path) -> bool:
    try:
        return "prompttuner" in tomllib.loads(path.read_text()).get("tool", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False  # somebody else's broken file is not ours to complain about


def _foreign(path: Path) -> str | None:
    """Why a project's file is left out: it can name commands, so only the user's own (or root's) is taken."""
    owner = path.stat().st_uid
    if owner in {ROOT_UID, os.getuid()}:
        return None
    return f"{path} is left out: it belongs to another user (uid {owner}) and could name commands to run"


def _need_private(handle: IO[str], path: Path) -> None:
    """A file that names commands to run must be its owner's alone to write.

    Raises:
        ConfigError: others may write it; says how to mend that.
    """
    mode = os.fstat(handle.fileno()).st_mode
    if mode & 0o022:
        raise ConfigError(
            f"{path} can be written by others (mode {mode & 0o777:o}) and could name commands to run: "
            f"chmod go-w {shlex.quote(str(path))}"
        )


def _file_layer(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as handle:
            _need_private(handle, path)
            text = handle.read()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. If this runs from cron, the folder may need a Kerberos or AFS "
            f"ticket that cron jobs do not have: use scrontab, a keytab (k5start), or {ENV_PREFIX}HOME elsewhere"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return _layer_of(path, text)


def is_pyproject(path: Path) -> bool:
    """Whether the settings of a file are in its ``[tool.prompttuner]``."""
    return path.name == "pyproject.toml"


def check_file(path: Path, text: str) -> None:
    """Check what a settings file is to hold, without writing it.

    Raises:
        ConfigError: broken TOML, an unknown setting, or a value that a setting cannot have.
    """
    layer = _layer_of(path, text)
    _validate(layer, dict.fromkeys(layer, str(path)))


def _layer_of(path: Path, text: str) -> dict[str, Any]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: broken TOML: {error}") from None
    if is_pyproject(path):
        content = content["tool"]["prompttuner"]
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: [tool.prompttuner] must be a table")
    known = known_settings()
    layer = dict(_flatten(content))
    for key in layer:
        if key not in known and key not in FORMER_NAMES:
            near = nearest_key(key, known)
            raise ConfigError(f"{path}: unknown setting {key!r}" + (f"; did you mean {near!r}?" if near else ""))
    return {key: _beside(path.parent, key, value) for key, value in layer.items()}


def _beside(folder: Path, key: str, value: Any) -> Any:
    """A path in a file is relative to that file: where a command runs must not choose which database it sees."""
    if isinstance(value, list) and key == "bank_dirs":
        return [_beside(folder, "home", one) for one in value]
    if not isinstance(value, str) or key not in _PATHS:
        return value
    head = _SQLITE if value.startswith(_SQLITE) else ""
    if key == "database" and not head and "://" in value:
        return value
    return f"{head}{folder.absolute() / Path(value.removeprefix(head)).expanduser()}"


def _environment() -> dict[str, Any]:
    try:
        found = dict(EnvSettingsSource(Settings)())
    except SettingsError as error:
        raise ConfigError(f'environment: {error}; lists are written as JSON, such as \'["a", "b"]\'') from None
    variables = {name: f"{ENV_PREFIX}{name.replace('.', '__').upper()}" for name in FORMER_NAMES}
    return {**{name: os.environ[key] for name, key in variables.items() if key in os.environ}, **found}


def _groups() -> dict[str, type[BaseModel]]:
    return {
        name: info.annotation
        for name, info in Settings.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    }


def known_settings() -> list[str]:
    """Dotted names of all settings."""
    groups = _groups()
    names: list[str] = []
    for name in Settings.model_fields:
        names.extend(f"{name}.{key}" for key in groups[name].model_fields) if name in groups else names.append(name)
    return names


def _flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    groups = _groups()
    for key, value in values.items():
        if isinstance(value, Mapping) and key in groups:
            for name, inner in value.items():
                yield f"{key}.{name}", inner
        else:
            yield str(key), value


def _validate(values: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        group, _, name = key.partition(".")
        if name:
            nested.setdefault(group, {})[name] = value
        else:
            nested[key] = value
    known = known_settings()
    for key in values:
        if key not in known:
            near = nearest_key(key, known)
            raise ConfigError(
                f"{origins[key]}: unknown setting {key!r}" + (f"; did you mean {near!r}?" if near else "")
            )
    try:
        return Settings(**nested)
    except ValidationError as error:
        at_fault = {".".join(str(part) for part in problem["loc"][:2]) for problem in error.errors()}
        text = explain_validation(error)
        places = sorted({place for key, place in origins.items() if key in at_fault or key.split(".")[-1] in text})
        raise ConfigError(f"{text} (set by: {', '.join(places) or 'defaults'})") from None
