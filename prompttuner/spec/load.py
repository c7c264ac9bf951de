"""Job specs from TOML and JSON files, from flags and from plain mappings."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prompttuner.errors import SpecError
from prompttuner.protocol.initial import InitialPrompt
from prompttuner.spec.job import ALIASES, JobSpec
from prompttuner.spec.models import SMALL
from prompttuner.spec.text import expand, is_folder, shorten

__all__ = ["explain_validation", "load_spec", "load_values", "make_spec", "read_spec_file"]

PATH_KEYS = ("train", "eval")


def make_spec(values: Mapping[str, Any], base: Path | None = None, source: str = "job spec") -> JobSpec:
    """Validate a mapping; relative paths are taken from ``base`` (default: the working folder).

    Raises:
        SpecError: what is wrong and where it came from.
    """
    folder = base or Path.cwd()
    try:
        spec = JobSpec.model_validate({str(key): value for key, value in values.items()})
    except ValidationError as error:
        raise SpecError(f"{source}: {explain_validation(error)}") from None
    changes: dict[str, Any] = {key: (folder / expand(getattr(spec, key))).absolute() for key in PATH_KEYS}
    if InitialPrompt.parse(spec.initial_prompt).kind == "file":
        changes["initial_prompt"] = str((folder / expand(spec.initial_prompt)).absolute())
    local = (folder / expand(spec.model)).absolute()
    if spec.model != SMALL and (is_folder(local) or spec.model.startswith((".", "/", "~"))):
        changes["model"] = str(local)
    return spec.model_copy(update=changes)


def load_spec(path: Path | str, overrides: Mapping[str, Any] | None = None) -> JobSpec:
    """The spec in a TOML or JSON file; ``overrides`` (flags) win, and their paths are relative to the working folder.

    Raises:
        SpecError: file missing, broken or invalid.
    """
    return make_spec(load_values(path, overrides), source=str(path))


def load_values(path: Path | str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """As ``load_spec``, not yet validated: what a grid is laid over."""
    path = Path(path)
    values: dict[str, Any] = {}
    for key, value in read_spec_file(path).items():
        name = ALIASES.get(key, key)
        if name in values:
            raise SpecError(f"{path}: {name!r} is given twice, under two names")
        values[name] = value
    for key in PATH_KEYS:
        if isinstance(values.get(key), str):
            values[key] = str((path.parent / expand(values[key])).absolute())
    for key in ("model", "initial_prompt"):
        if isinstance(values.get(key), str):
            values[key] = _beside(path.parent, values[key], folders=key == "model")
    return {**values, **(overrides or {})}


def read_spec_file(path: Path) -> dict[str, Any]:
    """The raw content of a ``.toml`` or ``.json`` file.

    Raises:
        SpecError: missing, unreadable or broken (with the line).
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a folder; give a TOML or JSON file") from None
    except PermissionError:
        raise SpecError(f"{path}: may not be read (permission denied)") from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL in it
        raise SpecError(f"{shorten(path)}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        text = raw.decode("utf-8")
        values = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except UnicodeDecodeError:
        raise SpecError(f"{path}: not UTF-8 text") from None
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"{path}: broken {'JSON' if path.suffix.lower() == '.json' else 'TOML'}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise SpecError(f"{path}: must hold one object with the keys of a job spec")
    return values


def explain_validation(error: ValidationError) -> str:
    """One readable line for each thing that pydantic found wrong."""
    lines = []
    for problem in error.errors(include_url=False, include_context=True):
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            message = "is required"
        elif problem["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]} (given: {shorten(repr(problem.get('input')))})"
        lines.append(message if not where or where in message else f"{where}: {message}")
    return "; ".join(lines)


def _beside(folder: Path, text: str, folders: bool) -> str:
    """A path that is meant relative to the spec file, made absolute; any other text unchanged.

    A plain word is a path only if it may name a folder and there is such a one.
    """
    if text.startswith("text:") or text == SMALL or not text:
        return text
    candidate = (folder / expand(text)).absolute()
    is_path = text.startswith((".", "/", "~")) or text.endswith(".safetensors") or (folders and is_folder(candidate))
    return str(candidate) if is_path else text
