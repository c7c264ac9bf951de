"""Data as tables: CSV, TSV and JSON arrays, row by row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from prompttuner.errors import DataError

__all__ = ["Row", "reader_of"]

Row = tuple[str, object]
"""Where it stands, in words ("row 3"), and what it holds: a mapping from column to value where all is well."""


def _delimited(handle: BinaryIO, path: Path, delimiter: str) -> Iterator[Row]:
    """Rows of a table with a header; a row is named by the line on which it ends, as editors count.

    Raises:
        DataError: no UTF-8 text, a header with the same column twice, or quotes that are never closed.
    """
    reader = csv.DictReader(io.TextIOWrapper(handle, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    try:
        names = list(reader.fieldnames or [])
        if len(set(names)) < len(names):
            raise DataError(f"{path}: its header names a column twice ({', '.join(names)})")
        for row in reader:
            where = f"line {reader.line_num}"
            if None in row:
                raise DataError(f"{path}, {where}: has more values than the header has columns; are quotes missing?")
            yield where, {name: value for name, value in row.items() if value is not None}
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {reader.line_num + 1}: not UTF-8 text ({error.reason})") from None
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: broken table: {error}") from None


def _array(handle: BinaryIO, path: Path) -> Iterator[Row]:
    """Elements of a JSON array.

    Raises:
        DataError: broken JSON, with line and column.
    """
    try:
        whole = json.loads(handle.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: broken JSON: {error.msg}") from None
    except (RecursionError, ValueError):
        raise DataError(f"{path}: broken JSON: nested too deeply, or a number of too many digits") from None
    for number, value in enumerate(whole, start=1):
        yield f"element {number}", value


def reader_of(handle: BinaryIO, path: Path) -> Callable[[BinaryIO, Path], Iterator[Row]] | None:
    """How to read an opened file, by its ending; None for JSON lines, which a .json file may hold as well."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        begin = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        handle.seek(0)
        return _array if begin.startswith(b"[") else None
    return READERS.get(suffix)


READERS: dict[str, Callable[[BinaryIO, Path], Iterator[Row]]] = {
    ".csv": lambda handle, path: _delimited(handle, path, ","),
    ".tsv": lambda handle, path: _delimited(handle, path, "\t"),
}
