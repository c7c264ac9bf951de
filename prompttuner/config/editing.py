"""Setting and removing single settings in a TOML file; comments, order and all other values stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from prompttuner.config.layers import check_file, is_pyproject, known_settings
from prompttuner.errors import ConfigError, NotFound
from prompttuner.files import write_bytes
from prompttuner.spec.job import nearest_key

__all__ = ["set_in_file", "unset_in_file"]


def set_in_file(path: Path, key: str, value: Any) -> None:
    """Write ``key = value`` to the file, which is made if it is missing; nothing is written if it would not load.

    Raises:
        ConfigError: an unknown setting, a value it cannot have, or a file that cannot be read or written.
    """
    _check_key(key)
    document = _read(path)
    *groups, name = key.split(".")
    table: Any = _root(document, path)
    for group in groups:
        if group not in table:
            table[group] = tomlkit.table()
        table = table[group]
        if not isinstance(table, Table):
            raise ConfigError(f"{path}: {group!r} is a value, not a table; mend it by hand")
    table[name] = value
    _write(path, document)


def unset_in_file(path: Path, key: str) -> None:
    """Take ``key`` out of the file.

    Raises:
        NotFound: it is not there.
        ConfigError: a file that cannot be read or written, or would not load without it.
    """
    _check_key(key)
    document = _read(path)
    *groups, name = key.split(".")
    table: Any = _root(document, path)
    for group in groups:
        table = table.get(group, {})
    if name not in table:
        raise NotFound(f"{path} does not set {key}")
    del table[name]
    _write(path, document)


def _check_key(key: str) -> None:
    known = known_settings()
    if key not in known:
        near = nearest_key(key, known)
        raise ConfigError(f"there is no setting {key!r}" + (f"; did you mean {near!r}?" if near else ""))


def _read(path: Path) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return tomlkit.document()
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is broken, and is left as it is: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _root(document: tomlkit.TOMLDocument, path: Path) -> Any:
    """The table that holds the settings: the whole file, or ``[tool.prompttuner]`` of a pyproject.toml."""
    return document["tool"]["prompttuner"] if is_pyproject(path) else document


def _write(path: Path, document: tomlkit.TOMLDocument) -> None:
    text = tomlkit.dumps(document)
    check_file(path, text)
    try:
        write_bytes(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
