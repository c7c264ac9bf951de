"""How long jobs of the last week waited in a partition, by the time they asked for: what length is placed soon."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from prompttuner.slurm.words import parse_time

__all__ = ["SACCT_WAITS", "Waits", "parse_waits"]

SACCT_WAITS = "TimelimitRaw,Submit,Start"
LENGTHS_S = (3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0, float("inf"))
"""Upper ends of the classes of requested time."""
FEW = 10
"""Fewer jobs than this in a class tell nothing."""
AS_SOON_S = 600.0
"""A wait that is longer by no more than this, or by half, counts as no longer."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Median wait in seconds of each class of requested time that enough jobs tell of, by its upper end in seconds."""

    by_length: tuple[tuple[float, float], ...] = ()

    def longest_without_waiting(self, least_s: float) -> tuple[float, float] | None:
        """The longest class, not below ``least_s``, whose jobs wait no longer than shorter ones, with its median wait.

        None where nothing was measured, or where all that are long enough wait longer.
        """
        if not self.by_length:
            return None
        shortest = min(wait for _, wait in self.by_length)
        bound = max(1.5 * shortest, shortest + AS_SOON_S)
        fine = [pair for pair in self.by_length if pair[0] >= least_s and pair[1] <= bound]
        return fine[-1] if fine else None


def parse_waits(text: str) -> Waits:
    """Rows of ``sacct --parsable2 --noheader --format=SACCT_WAITS``; jobs that have not started are left out."""
    classes: dict[float, list[float]] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 3:
            continue
        submit, start = parse_time(fields[1]), parse_time(fields[2])
        if not fields[0].isdigit() or submit is None or start is None or start < submit:
            continue
        asked = 60.0 * int(fields[0])
        classes.setdefault(next(end for end in LENGTHS_S if asked <= end), []).append(start - submit)
    return Waits(tuple((end, median(classes[end])) for end in LENGTHS_S if len(classes.get(end, ())) >= FEW))
