"""Renders a template, the user's own version of it first."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, StrictUndefined, TemplateError

from prompttuner.errors import ConfigError

__all__ = ["TEMPLATES", "check_lines", "render"]

TEMPLATES = ("agent.sh.j2", "controller.sh.j2", "cron.j2", "systemd.service.j2")
_OWN = Path(__file__).parent


def render(name: str, values: Mapping[str, Any], user_folder: Path | None = None) -> str:
    """The text of template ``name``; ``user_folder/name`` wins if it exists. Filter ``q`` quotes a shell word.

    Raises:
        ConfigError: the template is broken, or uses a value that does not exist.
    """
    loaders: list[BaseLoader] = [FileSystemLoader(folder) for folder in (user_folder, _OWN) if folder is not None]
    # The output is a shell script, where HTML escaping would do harm; values are quoted by ``q`` or checked before.
    environment = Environment(  # noqa: S701
        loader=ChoiceLoader(loaders),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["q"] = lambda value: shlex.quote(str(value))
    environment.filters["cron"] = lambda value: str(value).replace("%", "\\%")  # cron reads % as a line break
    environment.filters["systemd"] = _systemd_word
    try:
        return environment.get_template(name).render(**values)
    except (TemplateError, OSError, UnicodeDecodeError) as error:
        own = user_folder / name if user_folder is not None else None
        place = own if own is not None and own.exists() else _OWN / name
        raise ConfigError(f"template {place} cannot be rendered: {error}") from None


def _systemd_word(value: Any) -> str:
    """A word of a systemd unit: quoted, with specifiers and variables switched off."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"'


def check_lines(lines: Sequence[str], what: str) -> list[str]:
    """Set-up lines as they go into a script.

    Raises:
        ConfigError: a line that would be read as a directive of sbatch, or holds control characters.
    """
    for line in lines:
        if line.lstrip().startswith("#SBATCH"):
            raise ConfigError(f"{what}: {line.strip()!r} is a directive, not a set-up line; use the settings for it")
        if any(ord(char) < 32 and char != "\t" for char in line):
            raise ConfigError(f"{what}: {line!r} holds control characters")
    return list(lines)
