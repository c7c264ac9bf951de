"""Slurm's vocabulary: states of jobs, fields of its answers, times and durations. Knows nothing but words."""

from __future__ import annotations

import calendar
import re
import time
from enum import StrEnum

__all__ = [
    "NAME_PREFIX",
    "SACCT_FIELDS",
    "SQUEUE_FORMAT",
    "STATES",
    "TRACE_FIELDS",
    "Native",
    "native_of",
    "parse_duration",
    "parse_time",
]


class Native(StrEnum):
    """What the resource manager says of an allocation. UNKNOWN is never an end."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETING = "completing"
    """Its end is decided, processes may still live."""
    ENDED = "ended"
    UNKNOWN = "unknown"
    """Not answered, or not found in a source that may be late: leave it alone."""


NAME_PREFIX = "pt-"
"""Names of our Slurm jobs: this and the allocation's UUID."""

SQUEUE_FORMAT = "%i|%T|%r|%N|%S|%e|%j"
"""id, state, reason, nodes, start (or its estimate), end, name; the name comes last as it may hold anything."""

SACCT_FIELDS = "JobID,State,NodeList,Start,End,JobName"
"""What sacct is asked for about our own jobs; the name comes last as it may hold anything."""
TRACE_FIELDS = ("JobID", "User", "Submit", "ElapsedRaw", "AllocTRES", "State")
"""What a dump of sacct must hold to be imported as a trace: ``sacct -a -X --duplicates --parsable2 --starttime=DAY
--format=JobID,User,Submit,ElapsedRaw,AllocTRES,State`` shows it."""

_P, _R, _C, _E, _U = Native.PENDING, Native.RUNNING, Native.COMPLETING, Native.ENDED, Native.UNKNOWN
STATES: dict[str, Native] = {
    "PENDING": _P,
    "CONFIGURING": _P,
    "EXPEDITING": _P,
    "POWER_UP_NODE": _P,
    "REQUEUED": _P,
    "REQUEUE_FED": _P,
    "REQUEUE_HOLD": _P,
    "RESV_DEL_HOLD": _P,
    "SPECIAL_EXIT": _P,
    "RUNNING": _R,
    "RESIZING": _R,
    "SIGNALING": _R,
    "STOPPED": _R,
    "SUSPENDED": _R,
    "STAGE_OUT": _C,
    "COMPLETING": _C,
    "BOOT_FAIL": _E,
    "CANCELLED": _E,
    "COMPLETED": _E,
    "DEADLINE": _E,
    "FAILED": _E,
    "LAUNCH_FAILED": _E,
    "NODE_FAIL": _E,
    "OUT_OF_MEMORY": _E,
    "PREEMPTED": _E,
    "RECONFIG_FAIL": _E,
    "TIMEOUT": _E,
    "REVOKED": _U,
}
"""Every job state and flag of Slurm 20.11 to 25.05. Whatever is not here is UNKNOWN: the job is left alone."""


def native_of(word: str) -> Native:
    """What a state word means (``CANCELLED by 1000`` and shortened ``CANCELLED+`` too)."""
    first = word.strip().partition(" ")[0].rstrip("+").upper()
    return STATES.get(first, Native.UNKNOWN)


def parse_time(text: str) -> float | None:
    """Unix seconds of Slurm's ``2026-11-21T16:10:26`` (UTC, as the client asks for it); None for N/A, Unknown, NONE."""
    try:
        return float(calendar.timegm(time.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S")))
    except (ValueError, OverflowError):
        return None


def parse_duration(text: str) -> float | None:
    """Seconds of Slurm's ``days-hours:minutes:seconds`` and its short forms; inf for UNLIMITED; None for others.

    Forms: ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, ``days-hours[:minutes[:seconds]]``.
    """
    word = text.strip().upper()
    if word in {"UNLIMITED", "INFINITE"}:
        return float("inf")
    match = re.fullmatch(r"(?:(\d{1,5})-)?(\d{1,7})(?::(\d{1,6}))?(?::(\d{1,6}))?", word, re.ASCII)
    if match is None:
        return None
    days, first, second, third = (int(part) if part is not None else None for part in match.groups())
    if days is not None:
        return float(days * 86400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0))
    if second is None:
        return float((first or 0) * 60)
    if third is None:
        return float((first or 0) * 60 + second)
    return float((first or 0) * 3600 + second * 60 + third)
