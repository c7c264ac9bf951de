"""Importers of schedulers' own logs: the Standard Workload Format, and ``sacct --parsable2``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from prompttuner.errors import DataError
from prompttuner.trace.importers.common import Arrival, Wanted, mapped, moment
from prompttuner.trace.rows import Loaded, Problem, csv_rows, open_text
from prompttuner.words import Counted

__all__ = ["SACCT_FIELDS", "import_sacct", "import_swf"]

SACCT_FIELDS = ("JobID", "User", "Submit", "ElapsedRaw", "AllocTRES", "State")
"""``sacct -a -X --parsable2 --starttime=DAY --format=JobID,User,Submit,ElapsedRaw,AllocTRES,State`` shows them."""
SWF_COLUMNS = 18
_GPUS = re.compile(r"(?:^|,)gres/gpu(:[^=,]+)?=(\d+)")
_UNIX = re.compile(r"\d+(\.\d+)?")
_UNDECIDED = {
    "PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "RESIZING", "CONFIGURING", "COMPLETING", "STOPPED", "REQUEUE_HOLD",
    "REQUEUE_FED", "SIGNALING", "STAGE_OUT",
}  # fmt: skip


def import_swf(path: Path, wanted: Wanted, cpus_per_gpu: int = 1) -> Loaded:
    """Standard Workload Format (Feitelson): 18 numbers a line; submit, run time, processors and user are used.

    Args:
        cpus_per_gpu: processors that stand for one GPU (the format knows no GPUs); rounded up.
    """
    loaded = Loaded(str(path))

    def arrivals() -> Iterator[Arrival]:
        for line, raw in enumerate(open_text(path).split("\n"), 1):
            if not raw.strip() or raw.lstrip().startswith(";"):
                continue
            fields = raw.split()
            try:
                if len(fields) != SWF_COLUMNS:
                    raise ValueError(f"{Counted(len(fields), 'field')}, the format has {SWF_COLUMNS}")
                values = [float(field) for field in fields]
                if not all(map(math.isfinite, values)):
                    raise ValueError("a value is not finite")
            except ValueError as error:
                loaded.problems.append(Problem(line, str(error)))
                continue
            processors = values[4] if values[4] > 0 else values[7]  # allocated, else requested
            gpus = math.ceil(max(processors, 0) / cpus_per_gpu)
            user = "" if values[11] < 0 else f"user-{int(values[11])}"
            yield Arrival(line, f"swf-{int(values[0])}", values[1], values[3], gpus, user)

    return mapped(loaded, arrivals(), wanted)


def import_sacct(path: Path, wanted: Wanted) -> Loaded:
    """A dump of ``sacct --parsable2`` with at least the fields of ``SACCT_FIELDS``, so that a lab can replay its past.

    Job steps (``123.batch``) and jobs still in the queue or running are left out. ``Submit`` may be ISO or Unix time
    (``SLURM_TIME_FORMAT=%s``).
    """
    loaded = Loaded(str(path))

    def arrivals() -> Iterator[Arrival]:
        for line, row in csv_rows(open_text(path), str(path), SACCT_FIELDS, loaded.problems, bars=True):
            if "." in row["JobID"]:
                loaded.leave_out("a step, not a job")
                continue
            if row["State"].split(" ")[0] in _UNDECIDED:
                loaded.leave_out("had not ended")
                continue
            try:
                yield _sacct_job(line, row)
            except (ValueError, DataError) as error:
                loaded.problems.append(Problem(line, str(error)))

    return mapped(loaded, arrivals(), wanted)


def _sacct_job(line: int, row: Mapping[str, str]) -> Arrival:
    if not row["ElapsedRaw"].isdigit():
        raise ValueError(f"ElapsedRaw is {row['ElapsedRaw']!r}, not a number of seconds")
    submit = row["Submit"]
    at = float(submit) if _UNIX.fullmatch(submit) else moment(submit, "%Y-%m-%dT%H:%M:%S")
    return Arrival(line, f"slurm-{row['JobID']}", at, float(row["ElapsedRaw"]), _gpus(row["AllocTRES"]), row["User"])


def _gpus(tres: str) -> int:
    """GPUs of e.g. ``gres/gpu=4,gres/gpu:a100=2,gres/gpu:h100=2``: the untyped entry counts all, typed ones a part."""
    entries = [(bool(kind), int(count)) for kind, count in _GPUS.findall(tres)]
    untyped = [count for typed, count in entries if not typed]
    return untyped[0] if untyped else sum(count for _, count in entries)
