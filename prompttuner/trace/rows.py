"""Rows of a text table with line numbers, and what is wrong with which of them."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prompttuner.errors import DataError
from prompttuner.trace.job import TraceJob
from prompttuner.words import Counted

__all__ = ["Loaded", "Problem", "build_jobs", "csv_rows", "integer", "number", "open_text", "seconds", "whole"]

SHOWN_PROBLEMS = 20
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Problem:
    """One row that could not be used; ``line`` counts from 1 as editors do."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


@dataclass(slots=True)
class Loaded:
    """What came out of a file: usable jobs by submit time, broken rows, and rows left out on purpose."""

    source: str
    jobs: list[TraceJob] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> rows that were well formed but not asked for (too long, no GPU, ...)."""

    def leave_out(self, reason: str) -> None:
        """Count a good row that is not wanted, by reason."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    def require_clean(self) -> Loaded:
        """This, if no row was broken.

        Raises:
            DataError: lists the broken rows and says how to go on without them.
        """
        if not self.problems:
            return self
        shown = "\n".join(f"  {problem}" for problem in self.problems[:SHOWN_PROBLEMS])
        more = len(self.problems) - SHOWN_PROBLEMS
        rest = f"\n  and {more} more" if more > 0 else ""
        raise DataError(
            f"{self.source}: {Counted(len(self.problems), 'broken row')}, {len(self.jobs)} good\n{shown}{rest}\n"
            "repair them, or pass --skip-broken to go on with the good rows alone"
        )


def open_text(path: Path) -> str:
    """The file's text: UTF-8, unpacked if it is gzip's, a byte-order mark removed, lines ended by a line feed.

    Raises:
        DataError: missing, unreadable or not text.
    """
    try:
        data = path.read_bytes()
        if data.startswith(GZIP):
            data = gzip.decompress(data)
        text = data.decode()
    except FileNotFoundError:
        raise DataError(f"no trace file {path}") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8 text (line {line}): convert it with iconv, or unpack it unless gzip packed it"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a broken gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def csv_rows(
    text: str, source: str, required: Iterable[str], problems: list[Problem], hint: str = "", bars: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of each row that has as many fields as the header; others are added to ``problems``.

    Each line is a row of its own, so that a quote that is never closed spoils no row but its own. Lines that are blank
    or begin with ``#`` are skipped.

    Args:
        hint: added to the message about missing columns.
        bars: fields stand between ``|``, and quotes mean nothing (as ``sacct --parsable2`` writes).

    Raises:
        DataError: no header, a required column is missing, or two columns have one name.
    """
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip() and not line.startswith("#")]
    if not lines:
        raise DataError(f"{source} is empty: a header line with the column names is needed")
    try:
        header = [name.strip() for name in _fields(lines[0][1], bars)]
    except csv.Error as error:
        raise DataError(f"{source} line {lines[0][0]} is not CSV: {error}") from None
    missing = [name for name in required if name not in header]
    if missing:
        raise DataError(f"{source}: no column {', '.join(missing)} (found: {', '.join(header)}){hint}")
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise DataError(f"{source}: more than one column {', '.join(doubled)}")
    for line, raw in lines[1:]:
        try:
            row = _fields(raw, bars)
        except csv.Error as error:
            problems.append(Problem(line, f"not CSV: {error}"))
            continue
        if len(row) != len(header):
            problems.append(Problem(line, f"{Counted(len(row), 'field')}, the header has {len(header)}"))
            continue
        yield line, {name: value.strip() for name, value in zip(header, row, strict=True)}


def _fields(line: str, bars: bool) -> list[str]:
    return line.split("|") if bars else next(csv.reader([line], strict=True))


def number(row: Mapping[str, object], name: str) -> float:
    """A finite number. Raises ValueError with the column's name."""
    value = row.get(name)
    try:
        if isinstance(value, bool):
            raise TypeError
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {_shown(value)}, not a number") from None
    if not math.isfinite(result):
        raise ValueError(f"{name} is {_shown(value)}, not a finite number")
    return result


def seconds(row: Mapping[str, object], name: str) -> float:
    """A finite time of 0 or more. Raises ValueError with the column's name."""
    value = number(row, name)
    if value < 0:
        raise ValueError(f"{name} is {value:g}, below 0")
    return value


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than some thousand digits
        return "too large"
    return text if len(text) <= 40 else text[:40] + "..."


def integer(row: Mapping[str, object], name: str) -> int:
    """A whole number. Raises ValueError with the column's name."""
    return whole(number(row, name), name)


def whole(value: float, name: str) -> int:
    """A whole number; raises DataError with the name of the field."""
    if value != int(value):
        raise ValueError(f"{name} is {value}, not a whole number")
    return int(value)


def build_jobs(
    loaded: Loaded,
    rows: Iterable[tuple[int, Mapping[str, object]]],
    make: Callable[[Mapping[str, object]], TraceJob | str],
) -> Loaded:
    """Turn rows into jobs sorted by submit time; a broken or doubled row becomes a problem with its line.

    Args:
        make: a job, or the reason why this well-formed row is left out; ValueError or DataError when broken.
    """
    seen: dict[str, int] = {}
    for line, row in rows:
        try:
            job = make(row)
        except (ValueError, DataError) as error:
            loaded.problems.append(Problem(line, str(error)))
            continue
        if isinstance(job, str):
            loaded.leave_out(job)
        elif job.id in seen:
            loaded.problems.append(Problem(line, f"job {job.id!r} is already on line {seen[job.id]}"))
        else:
            seen[job.id] = line
            loaded.jobs.append(job)
    loaded.jobs.sort(key=lambda job: (job.submit_s, job.id))
    loaded.problems.sort(key=lambda problem: problem.line)
    return loaded
