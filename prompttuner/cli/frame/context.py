"""The global options of this command line and the settings they lead to."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prompttuner.errors import ConfigError

if TYPE_CHECKING:
    from prompttuner.config import Layers, Settings

__all__ = ["as_value", "flag", "layers", "set_flags", "settings"]

_flags: dict[str, Any] = {}
_layers: dict[str, Layers] = {}
"""The layers of this command line, read once."""


def set_flags(flags: Mapping[str, Any], pairs: Sequence[str]) -> None:
    """Remember the global options of this command line.

    Raises:
        ConfigError: a ``--set`` that is not ``key=value``.
    """
    _flags.clear()
    _layers.clear()
    _flags.update(flags)
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {pair!r}: write KEY=VALUE, such as --set idle_limit_s=5m")
        _flags[key.strip()] = as_value(text.strip())


def layers() -> Layers:
    """The settings with their origins; notes about left-out layers go to standard error once."""
    if "now" not in _layers:
        from prompttuner.config import load_layers

        _layers["now"] = load_layers(_flags)
        for note in _layers["now"].notes:
            sys.stderr.write(f"warning: {note}\n")
    return _layers["now"]


def settings() -> Settings:
    """The settings in force for this command line, read once."""
    return layers().settings


def flag(name: str) -> Any:
    """A global option of this command line; None if it was not given."""
    return _flags.get(name)


def as_value(text: str) -> Any:
    """A TOML value (number, list, true) if it is one, else the text itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
