"""Importers of schedulers' own logs: the Standard Workload Format, and ``sacct --parsable2``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prompttuner.slurm.words import TRACE_FIELDS, Native, native_of
from prompttuner.trace.importers.common import Arrival, Wanted, mapped, moment
from prompttuner.trace.rows import Loaded, Problem, csv_rows, open_text
from prompttuner.words import Counted

__all__ = ["import_sacct", "import_swf"]

SWF_COLUMNS = 18
SWF_LEFT_OUT = {
    0: "failed",
    2: "a partial execution (its job has a line of its own)",
    3: "a partial execution (its job has a line of its own)",
    4: "a partial execution (its job has a line of its own)",
    5: "was cancelled",
}
"""Status (field 11) of lines that are no work done. Kept are 1 (completed) and -1 (not known, as in models)."""
SWF_KEPT = (1, -1)
_GPUS = re.compile(r"(?:^|,)gres/gpu(:[^=,]+)?=(\d+)")
_UNIX = re.compile(r"\d+(\.\d+)?")


def import_swf(path: Path, wanted: Wanted, cpus_per_gpu: int = 1) -> Loaded:
    """Standard Workload Format (Feitelson), version 2.2: 18 numbers a line.

    Submit, run time, processors, status and user are used.

    A job that was swapped out or went back to a checkpoint has a line of its own (the sum) and one for each partial
    execution with the same number; the format's definition says that studies of workloads use the first alone. What
    failed or was cancelled is no work to a target, and is left out, counted by reason.

    Args:
        cpus_per_gpu: processors that stand for one GPU (the format knows no GPUs); rounded up.
    """
    loaded = Loaded(str(path))

    def arrivals() -> Iterator[Arrival]:
        for line, raw in enumerate(open_text(path).split("\n"), 1):
            if not raw.strip() or raw.lstrip().startswith(";"):
                continue
            try:
                job = _swf_job(line, raw.split(), cpus_per_gpu)
            except ValueError as error:
                loaded.problems.append(Problem(line, str(error)))
                continue
            if isinstance(job, str):
                loaded.leave_out(job)
            else:
                yield job

    return mapped(loaded, arrivals(), wanted)


def _swf_job(line: int, fields: list[str], cpus_per_gpu: int) -> Arrival | str:
    """The job of one line, or why it is left out. Raises ValueError."""
    if len(fields) != SWF_COLUMNS:
        raise ValueError(f"{Counted(len(fields), 'field')}, the format has {SWF_COLUMNS}")
    values = [float(field) for field in fields]
    if not all(map(math.isfinite, values)):
        raise ValueError("a value is not finite")
    status = values[10]
    if status in SWF_LEFT_OUT:
        return SWF_LEFT_OUT[int(status)]
    if status not in SWF_KEPT:
        raise ValueError(f"status (field 11) is {fields[10]}, the format has -1 to 5")
    processors = values[4] if values[4] > 0 else values[7]  # allocated, else requested
    gpus = math.ceil(max(processors, 0) / cpus_per_gpu)
    user = "" if values[11] < 0 else f"user-{int(values[11])}"
    return Arrival(line, f"swf-{int(values[0])}", values[1], values[3], gpus, user)


def import_sacct(path: Path, wanted: Wanted) -> Loaded:
    """A dump of ``sacct --parsable2`` with at least ``TRACE_FIELDS``, so that a lab can replay its past.

    A job has several lines where it was resized (one for each size, the later ones "submitted" at the resize) or
    requeued (with ``--duplicates`` one for each try). They are one job: submitted when the first was, its work the sum
    of run times x GPUs. Job steps (``123.batch``) and jobs still in the queue or running are left out. ``Submit`` may
    be ISO or Unix time (``SLURM_TIME_FORMAT=%s``).
    """
    loaded = Loaded(str(path))
    found: dict[str, list[_SacctLine]] = {}
    for line, row in csv_rows(open_text(path), str(path), TRACE_FIELDS, loaded.problems, bars=True):
        if "." in row["JobID"]:
            loaded.leave_out("a step, not a job")
            continue
        try:
            part = _sacct_line(line, row)
        except ValueError as error:
            loaded.problems.append(Problem(line, str(error)))
            continue
        parts = found.setdefault(row["JobID"], [])
        if parts and parts[0].user != part.user:
            told = f"job {row['JobID']} is on line {parts[0].line} with another user: an id that was given twice"
            loaded.problems.append(Problem(line, told))
            continue
        parts.append(part)
    return mapped(loaded, (job for name, parts in found.items() if (job := _joined(name, parts, loaded))), wanted)


@dataclass(frozen=True, slots=True)
class _SacctLine:
    line: int
    submit: float
    elapsed_s: float
    gpus: int
    user: str
    state: str


def _sacct_line(line: int, row: Mapping[str, str]) -> _SacctLine:
    submit, state = row["Submit"], row["State"].split(" ")[0]
    if not row["ElapsedRaw"].isdigit() and not _undecided(state):
        raise ValueError(f"ElapsedRaw is {row['ElapsedRaw']!r}, not a number of seconds")
    at = float(submit) if _UNIX.fullmatch(submit) else moment(submit, "%Y-%m-%dT%H:%M:%S")
    elapsed = float(row["ElapsedRaw"]) if row["ElapsedRaw"].isdigit() else 0.0
    return _SacctLine(line, at, elapsed, _gpus(row["AllocTRES"]), row["User"], state)


def _undecided(state: str) -> bool:
    """Whether a job in this state has not ended."""
    return native_of(state) in {Native.PENDING, Native.RUNNING, Native.COMPLETING}


def _joined(name: str, parts: list[_SacctLine], loaded: Loaded) -> Arrival | None:
    """One job of all its lines; None (and counted) where the last of them has not ended."""
    parts = sorted(parts, key=lambda part: (part.submit, part.line))
    if _undecided(parts[-1].state):
        loaded.leave_out("had not ended")
        return None
    gpus = max(part.gpus for part in parts)
    total = sum(part.elapsed_s * part.gpus for part in parts)
    run_s = total / gpus if gpus else sum(part.elapsed_s for part in parts)
    return Arrival(min(part.line for part in parts), f"slurm-{name}", parts[0].submit, run_s, gpus, parts[0].user)


def _gpus(tres: str) -> int:
    """GPUs of e.g. ``gres/gpu=4,gres/gpu:a100=2,gres/gpu:h100=2``: the untyped entry counts all, typed ones a part."""
    entries = [(bool(kind), int(count)) for kind, count in _GPUS.findall(tres)]
    untyped = [count for typed, count in entries if not typed]
    return untyped[0] if untyped else sum(count for _, count in entries)
