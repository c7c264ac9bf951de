"""Training and evaluation data with ``input`` and ``target``: JSONL, CSV, TSV or a JSON array; complaints say where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from prompttuner.errors import DataError
from prompttuner.spec.tables import reader_of
from prompttuner.spec.text import is_file, is_folder, is_text, shorten

__all__ = ["Sample", "count_samples", "iter_samples", "read_samples"]


class Sample(NamedTuple):
    """One line of data."""

    input: str
    target: str


def iter_samples(path: Path | str) -> Iterator[Sample]:
    """Yield the samples of a file in order: of a table (.csv, .tsv), a JSON array (.json), else of JSON lines.

    Blank lines are skipped; further keys and columns are ignored.

    Raises:
        DataError: missing or unreadable file, or a line that is no sample; the message names file and line.
    """
    path = Path(path)
    with _opened(path) as handle:
        reader = reader_of(handle, path)
        if reader is not None:
            for where, value in reader(handle, path):
                yield _checked(value, f"{path}, {where}")
            return
        for number, raw in enumerate(handle, start=1):
            if raw.strip():
                yield _sample(raw, path, number)


def read_samples(path: Path | str, limit: int | None = None) -> list[Sample]:
    """The first ``limit`` (or all) samples of a file.

    Raises:
        DataError: as ``iter_samples``; also when there is no sample at all.
    """
    samples: list[Sample] = []
    for sample in iter_samples(path):
        if limit is not None and len(samples) >= limit:
            break
        samples.append(sample)
    if not samples:
        raise DataError(f'{path}: holds no samples; each line must be like {{"input": "...", "target": "..."}}')
    return samples


def count_samples(path: Path | str) -> int:
    """Check every line of a file and count its samples.

    Raises:
        DataError: as ``read_samples``.
    """
    count = sum(1 for _ in iter_samples(path))
    if not count:
        raise DataError(f'{path}: holds no samples; each line must be like {{"input": "...", "target": "..."}}')
    return count


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        # A pipe would be empty when it is read again (hashed now, read by the workers later), and may never end.
        if path.exists() and not is_file(path) and not is_folder(path):
            raise DataError(f"{path}: is no ordinary file; write the data into one, since it is read more than once")
        with path.open("rb") as handle:
            yield handle
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, not a JSONL file") from None
    except PermissionError:
        raise DataError(f"{path}: may not be read (permission denied)") from None
    except OSError as error:
        raise DataError(f"{shorten(path)}: cannot be read: {error.strerror}") from None


def _sample(raw: bytes, path: Path, number: int) -> Sample:
    where = f"{path}, line {number}"
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start + 1})") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: broken JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{where}: broken JSON: nested too deeply") from None
    except ValueError:  # an integer beyond what Python converts
        raise DataError(f"{where}: broken JSON: a number of too many digits") from None
    return _checked(value, where)


def _checked(value: object, where: str) -> Sample:
    if not isinstance(value, dict):
        raise DataError(f'{where}: must be an object like {{"input": "...", "target": "..."}}')
    for key in ("input", "target"):
        if key not in value:
            raise DataError(f"{where}: has no {key!r} (its keys are: {', '.join(sorted(value)) or 'none'})")
        if not isinstance(value[key], str):
            raise DataError(f"{where}: {key!r} must be text, not {type(value[key]).__name__}")
        if not is_text(value[key]):
            raise DataError(f"{where}: {key!r} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text")
    if not value["target"]:
        raise DataError(f"{where}: 'target' is empty: there is nothing to learn from this line")
    return Sample(value["input"], value["target"])
