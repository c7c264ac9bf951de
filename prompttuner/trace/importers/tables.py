"""Importers of CSV-like traces: Philly-derived (adaptdl), Chronus, Azure LLM arrivals."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prompttuner.errors import DataError
from prompttuner.trace.importers.common import Arrival, Wanted, mapped, moment
from prompttuner.trace.rows import Loaded, Problem, csv_rows, integer, number, open_text, seconds

__all__ = ["import_azure", "import_chronus", "import_philly"]

MINUTE = 60.0
FORM = "%Y-%m-%d %H:%M:%S"
_AZURE_TIME = re.compile(r"(.{19})(\.\d+)?(?:\+00:00|Z)?")


def import_philly(path: Path, wanted: Wanted) -> Loaded:
    """The Philly trace as derived for adaptdl: ``timestamp, duration (s), num_gpus, gpu_time, cluster``."""

    def make(line: int, row: Mapping[str, str]) -> Arrival:
        at = moment(row["timestamp"], FORM)
        return Arrival(line, f"philly-{line}", at, seconds(row, "duration"), integer(row, "num_gpus"), row["cluster"])

    return _import(path, ("timestamp", "duration", "num_gpus", "cluster"), make, wanted)


def import_chronus(path: Path, wanted: Wanted) -> Loaded:
    """Chronus: ``job_id, user, num_gpu, submit_time, duration, expect_time_list, best_effort``.

    Its times have no unit; they are taken as minutes. A job's deadline is the first entry of ``expect_time_list``
    after its submission, unless it is best effort.
    """

    def make(line: int, row: Mapping[str, str]) -> Arrival:
        slo = float("inf")
        if row["best_effort"] != "1":
            first = row["expect_time_list"].replace(";", "-").split("-")[0]
            slo = MINUTE * seconds({"expect_time_list": first}, "expect_time_list")
        return Arrival(
            line,
            f"chronus-{row['job_id']}",
            MINUTE * number(row, "submit_time"),
            MINUTE * seconds(row, "duration"),
            integer(row, "num_gpu"),
            row["user"],
            slo,
        )

    required = ("job_id", "user", "num_gpu", "submit_time", "duration", "expect_time_list", "best_effort")
    return _import(path, required, make, wanted)


def import_azure(path: Path, wanted: Wanted) -> Loaded:
    """Azure's LLM inference arrivals: ``TIMESTAMP, ContextTokens, GeneratedTokens``.

    Only the arrival process is meant: each request becomes a one-GPU job whose run time is its tokens, a second each,
    to be filtered and scaled.
    """

    def make(line: int, row: Mapping[str, str]) -> Arrival:
        found = _AZURE_TIME.fullmatch(row["TIMESTAMP"])
        if found is None:
            raise ValueError(f"{row['TIMESTAMP']!r} is not a time of the form {FORM}, with or without fractions")
        at = moment(found[1], FORM) + float(found[2] or 0)  # seven digits, one more than Python reads
        tokens = seconds(row, "ContextTokens") + seconds(row, "GeneratedTokens")
        return Arrival(line, f"azure-{line}", at, tokens, 1)

    return _import(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), make, wanted)


def _import(
    path: Path, required: tuple[str, ...], make: Callable[[int, Mapping[str, str]], Arrival], wanted: Wanted
) -> Loaded:
    loaded = Loaded(str(path))

    def arrivals() -> Iterator[Arrival]:
        for line, row in csv_rows(open_text(path), str(path), required, loaded.problems):
            try:
                yield make(line, row)
            except (ValueError, DataError) as error:
                loaded.problems.append(Problem(line, str(error)))

    return mapped(loaded, arrivals(), wanted)
