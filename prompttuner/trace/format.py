"""The trace format: one job a row, as CSV with a header or as JSON lines, with the same names in both."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from prompttuner.errors import DataError
from prompttuner.files import write_bytes
from prompttuner.trace.job import TraceJob
from prompttuner.trace.rows import Loaded, Problem, build_jobs, csv_rows, integer, number, open_text

__all__ = ["COLUMNS", "REQUIRED", "dump_trace", "read_trace", "write_trace"]

COLUMNS = tuple(field.name for field in fields(TraceJob))
REQUIRED = ("id", "submit_s", "llm", "iters", "step_s")
_INTEGERS = ("min_gpus", "max_gpus", "requested_gpus", "priority")
_TEXTS = ("id", "llm", "task", "user")
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def read_trace(path: Path) -> Loaded:
    """Read a trace; ``.jsonl`` (or a first character ``{``) is JSON lines, anything else CSV.

    Broken rows are listed in the result with their line numbers; call ``require_clean`` to insist on none.

    Raises:
        DataError: the file cannot be read at all, or lacks a required column.
    """
    text = open_text(path)
    loaded = Loaded(str(path))
    if path.suffix == ".jsonl" or text.lstrip()[:1] == "{":
        rows: Iterable[tuple[int, Mapping[str, object]]] = _json_rows(text, loaded.problems)
    else:
        hint = "; other logs and traces are turned into one by `prompttuner trace import`"
        rows = csv_rows(text, str(path), REQUIRED, loaded.problems, hint=hint)
    build_jobs(loaded, rows, _job)
    if not loaded.jobs and not loaded.problems:
        raise DataError(f"{path} holds no jobs")
    return loaded


def dump_trace(jobs: Iterable[TraceJob], jsonl: bool = False) -> str:
    """The trace's text. Floats keep all their digits, so that reading gives equal jobs; infinity is left out."""
    records = [{name: getattr(job, name) for name in COLUMNS} for job in jobs]
    if jsonl:
        return "".join(json.dumps({k: v for k, v in r.items() if v != math.inf}) + "\n" for r in records)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        writer.writerow([_cell(record[name]) for name in COLUMNS])
    return out.getvalue()


def write_trace(path: Path, jobs: Iterable[TraceJob]) -> None:
    """Write atomically; JSON lines when the name ends in ``.jsonl``, else CSV."""
    write_bytes(path, dump_trace(jobs, jsonl=path.suffix == ".jsonl").encode())


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value == math.inf else str(value)


def _json_rows(text: str, problems: list[Problem]) -> Iterator[tuple[int, Mapping[str, object]]]:
    for line, raw in enumerate(text.split("\n"), 1):
        if not raw.strip() or raw.startswith("#"):
            continue
        try:
            value = json.loads(raw)
        except json.JSONDecodeError as error:
            problems.append(Problem(line, f"not JSON: {error.msg} at column {error.colno}"))
            continue
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets in thousands
            problems.append(Problem(line, f"not JSON that can be read: {error}"))
            continue
        if not isinstance(value, dict):
            problems.append(Problem(line, "not a JSON object"))
            continue
        yield line, value


def _job(row: Mapping[str, object]) -> TraceJob:
    unknown = [name for name in row if name not in COLUMNS and not name.startswith("x_")]
    if unknown:
        raise ValueError(f"unknown column {', '.join(unknown)} (names of your own must begin with x_)")
    given = {name: row[name] for name in COLUMNS if row.get(name) not in (None, "")}
    missing = [name for name in REQUIRED if name not in given]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    values: dict[str, object] = {}
    for name, value in given.items():
        if name in _TEXTS:
            values[name] = str(value)
        elif name in _INTEGERS:
            values[name] = integer(given, name)
        elif name == "stop_on_miss":
            values[name] = _truth(value)
        elif name == "deadline_s" and str(value).strip().lower() in {"inf", "infinity"}:
            values[name] = math.inf
        else:
            values[name] = number(given, name)
    return TraceJob(**values)  # type: ignore[arg-type]


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    truth = _TRUTHS.get(str(value).lower())
    if truth is None:
        raise ValueError(f"stop_on_miss is {value!r}, not true or false")
    return truth
