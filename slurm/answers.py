"""Reads what squeue, sacct and scontrol print: fixed fields; what is not understood is left out, never guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prompttuner.slurm.words import NAME_PREFIX, Native, native_of, parse_time

__all__ = ["Row", "parse_record", "parse_sacct", "parse_squeue"]


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


def _is_id(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,18}", text) is not None


def _is_word(text: str) -> bool:
    return re.fullmatch(r"[A-Z_]{2,20}\+?( by [0-9]+)?", text) is not None


def _node(text: str) -> str | None:
    word = text.strip()
    return None if word in {"", "(null)", "None assigned", "N/A"} else word
