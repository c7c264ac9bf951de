"""From plain JSON values to classes and back: one lenient reader and one writer for all that crosses a process."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any, ClassVar, Literal, Self, TypeAlias, Union, get_args, get_origin, get_type_hints

from prompttuner.errors import PromptTunerError, SpoolError

__all__ = ["Json", "Message", "Unread"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""What JSON can hold."""
Reader: TypeAlias = Callable[[object], Any]


@dataclass(frozen=True, slots=True)
class Unread:
    """Why a value is not what was asked for."""

    why: str


class Message:
    """Base of the dataclasses that cross a process. Their fields are the keys of the JSON object.

    Reading ignores keys that are not known, takes a field's default where its key is missing (or null, where the field
    cannot be None), and never raises: what makes no sense is answered with the reason. Writing is the only way to make
    the JSON.
    """

    __slots__ = ()

    FILE: ClassVar[str] = ""
    """The file's name, where there is one file of it a folder."""
    SPARSE: ClassVar[bool] = False
    """Whether fields that are None are left out in writing."""

    @classmethod
    def read(cls, value: object) -> Self | Unread:
        """Read parsed JSON."""
        return cls._from_fields(value)

    @classmethod
    def _from_fields(cls, value: object) -> Self | Unread:
        if not isinstance(value, Mapping):
            return Unread(f"{_name(cls)}: not an object but {_shown(value)}")
        given = {}
        try:
            for name, reader, optional, has_default in _readers(cls):  # type: ignore[arg-type]
                if name not in value or (value[name] is None and not optional and has_default):
                    if not has_default:
                        return Unread(f"{_name(cls)}: {name!r} is missing")
                    continue
                try:
                    given[name] = reader(value[name])
                except (ValueError, TypeError, OverflowError) as error:
                    return Unread(f"{_name(cls)}: {name!r} {error}")
            return cls(**given)
        except (ValueError, TypeError, OverflowError, PromptTunerError) as error:  # the class's own checks
            return Unread(f"{_name(cls)}: {error}")

    @classmethod
    def expect(cls, value: object) -> Self:
        """As :meth:`read`, for those who cannot go on without.

        Raises:
            SpoolError: it makes no sense; the message says why.
        """
        message = cls.read(value)
        if isinstance(message, Unread):
            raise SpoolError(message.why)
        return message

    def to_json(self) -> dict[str, Json]:
        """The JSON object, of plain values."""
        values = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None} if self.SPARSE else values


def _plain(value: Any) -> Json:
    if isinstance(value, Message):
        return value.to_json()
    if hasattr(value, "parse"):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value  # type: ignore[no-any-return]


@cache
def _readers(cls: type[Message]) -> tuple[tuple[str, Reader, bool, bool], ...]:
    """By field: name, reader of its value, whether None is one of its values, whether there is a default."""
    hints = get_type_hints(cls)
    found: list[Field[Any]] = list(fields(cls))  # type: ignore[arg-type]
    return tuple(
        (
            f.name,
            _reader(hints[f.name]),
            type(None) in get_args(hints[f.name]),
            f.default is not MISSING or f.default_factory is not MISSING,
        )
        for f in found
        if f.init
    )


def _reader(kind: Any) -> Reader:
    """The reader of values of a type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in {Union, types.UnionType}:
        readers = [_reader(part) for part in parts if part is not type(None)]
        return _any_of(readers, type(None) in parts)
    if origin is Literal:
        return _one_of(parts)
    if origin is tuple:
        return _items(_reader(parts[0])) if parts[-1] is Ellipsis else _places([_reader(part) for part in parts])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _table(_reader(parts[1]))
    if isinstance(kind, type) and issubclass(kind, Message):
        return _nested(kind)
    if hasattr(kind, "parse"):
        return _parsed(kind.parse)
    return _PLAIN[kind]


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != math.floor(value):
        raise ValueError(f"is not a whole number but {_shown(value)}")
    return int(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is not a number but {_shown(value)}")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is not text but {_shown(value)}")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"is neither true nor false but {_shown(value)}")
    return value


_PLAIN: dict[object, Reader] = {int: _integer, float: _number, str: _text, bool: _flag, object: lambda value: value}


def _any_of(readers: list[Reader], or_none: bool) -> Reader:
    def read(value: object) -> Any:
        if value is None and or_none:
            return None
        for reader in readers[:-1]:
            try:
                return reader(value)
            except (ValueError, OverflowError):
                continue
        return readers[-1](value)

    return read


def _one_of(words: tuple[object, ...]) -> Reader:
    def read(value: object) -> object:
        if value not in words:
            raise ValueError(f"is none of {', '.join(map(str, words))} but {_shown(value)}")
        return value

    return read


def _items(reader: Reader) -> Reader:
    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError(f"is not a list but {_shown(value)}")
        return tuple(reader(item) for item in value)

    return read


def _places(readers: list[Reader]) -> Reader:
    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) != len(readers):
            raise ValueError(f"is not a list of {len(readers)} but {_shown(value)}")
        return tuple(reader(item) for reader, item in zip(readers, value, strict=True))

    return read


def _table(reader: Reader) -> Reader:
    def read(value: object) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"is not an object but {_shown(value)}")
        return {str(key): reader(item) for key, item in value.items()}

    return read


def _parsed(parse: Callable[[str], Any]) -> Reader:
    """Of classes that are a text in JSON, which they ``parse`` and ``str`` makes again."""
    return lambda value: parse(_text(value))


def _nested(kind: type[Message]) -> Reader:
    def read(value: object) -> Message:
        message = kind.read(value)
        if isinstance(message, Unread):
            raise ValueError(f"makes no sense: {message.why}")
        return message

    return read


def _name(cls: type[Message]) -> str:
    return cls.FILE or cls.__name__


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
