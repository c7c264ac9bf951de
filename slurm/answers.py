"""Reads what squeue, sacct and scontrol print: fixed fields; what is not understood is left out, never guessed."""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import dataclass

from prompttuner.slurm.backend import Native

__all__ = [
    "NAME_PREFIX",
    "SACCT_FIELDS",
    "SQUEUE_FORMAT",
    "STATES",
    "Row",
    "native_of",
    "parse_duration",
    "parse_record",
    "parse_sacct",
    "parse_squeue",
    "parse_time",
]

NAME_PREFIX = "pt-"
"""Names of our Slurm jobs: this and the allocation's UUID."""

SQUEUE_FORMAT = "%i|%T|%r|%N|%S|%e|%j"
"""id, state, reason, nodes, start (or its estimate), end, name; the name comes last as it may hold anything."""

SACCT_FIELDS = "JobID,State,NodeList,Start,End,JobName"

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


@dataclass(frozen=True, slots=True)
class Row:
    """One job in one answer."""

    job_id: str
    state: Native
    word: str
    """Slurm's own, such as ``CANCELLED by 1000``."""
    reason: str = ""
    node: str | None = None
    start_at: float | None = None
    ends_at: float | None = None
    name: str = ""

    @property
    def uuid(self) -> str | None:
        """The allocation it belongs to; None for somebody else's job."""
        return self.name.removeprefix(NAME_PREFIX) if self.name.startswith(NAME_PREFIX) else None


def native_of(word: str) -> Native:
    """What a state word means (``CANCELLED by 1000`` and shortened ``CANCELLED+`` too)."""
    first = word.strip().partition(" ")[0].rstrip("+").upper()
    return STATES.get(first, Native.UNKNOWN)


def parse_squeue(text: str) -> list[Row]:
    """Rows of ``squeue --noheader --format=SQUEUE_FORMAT``."""
    rows = []
    for line in text.splitlines():
        fields = line.strip().split("|", 6)
        if len(fields) != 7 or not _is_id(fields[0]) or not _is_word(fields[1]):
            continue
        number, word, reason, node, start, end, name = fields
        rows.append(
            Row(
                number,
                native_of(word),
                word,
                "" if reason == "None" else reason,
                _node(node),
                parse_time(start),
                parse_time(end),
                name.strip(),
            )
        )
    return rows


def parse_sacct(text: str) -> list[Row]:
    """Rows of ``sacct --noheader --parsable2 --format=SACCT_FIELDS``; steps are left out."""
    rows = []
    for line in text.splitlines():
        fields = line.strip().split("|", 5)
        if len(fields) != 6 or not _is_id(fields[0]) or not _is_word(fields[1]):
            continue
        number, word, node, start, end, name = fields
        rows.append(
            Row(number, native_of(word), word, "", _node(node), parse_time(start), parse_time(end), name.strip())
        )
    return rows


def parse_record(text: str) -> list[dict[str, str]]:
    """``scontrol --oneliner show ...``: one dict a line. A value lasts until the next ``Key=``."""
    records = []
    for line in text.splitlines():
        pairs = re.findall(r"(?:^|\s)([A-Za-z][\w:/.-]*)=(.*?)(?=\s+[A-Za-z][\w:/.-]*=|\s*$)", line)
        if pairs:
            records.append({key: value.strip() for key, value in pairs})
    return records


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


def _is_id(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,18}", text) is not None


def _is_word(text: str) -> bool:
    return re.fullmatch(r"[A-Z_]{2,20}\+?( by [0-9]+)?", text) is not None


def _node(text: str) -> str | None:
    word = text.strip()
    return None if word in {"", "(null)", "None assigned", "N/A"} else word
