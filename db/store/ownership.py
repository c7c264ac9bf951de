"""Who may write: one expiring ownership with a fencing generation, taken over only from the dead.

An owner renews its *beat* (every write does so too). Nobody compares clocks of two hosts: a taker measures, by its own
clock, how long the beat has not changed since it first saw it, and takes over once that is the owner's time to live.
What it has seen is remembered in a small file, so that runs of a minute each (cron) can wait together. A process of
the same machine that is proved dead is taken over from at once. Safety does not rest on any of this: every write
first checks, in its own transaction, that its generation is still the present one.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.orm import Session

from prompttuner.db.queries.bulk import table_of
from prompttuner.db.tables.models import OwnershipRow
from prompttuner.errors import NotOwner
from prompttuner.files import read_json, write_json

__all__ = [
    "OwnerInfo",
    "Ownership",
    "Watch",
    "fence",
    "give_up",
    "may_take",
    "new_owner_id",
    "process_is_dead",
    "read_owner",
    "refuse",
    "take",
]

OwnerRow = Row[Any]
"""generation, owner, host, machine, pid, pid_start, command, beat, ttl_s, acquired_at, renewed_at, last_write."""

_O = OwnershipRow
_COLUMNS = tuple(
    table_of(OwnershipRow).c[name]
    for name in (
        "generation",
        "owner",
        "host",
        "machine",
        "pid",
        "pid_start",
        "command",
        "beat",
        "ttl_s",
        "acquired_at",
        "renewed_at",
        "last_write",
    )
)


def boot_clock() -> float:
    """Seconds since this machine's boot, time asleep included: the same for all its processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _this_machine() -> str:
    """What two processes must share for one to judge the other's pid: the boot, and the pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class OwnerInfo:
    """A process that wants to own the state."""

    host: str
    pid: int
    command: str
    machine: str
    """Boot id and pid namespace; two processes with the same one can see each other's pids."""
    pid_start: str

    @classmethod
    def of_this_process(cls, command: str = "") -> OwnerInfo:
        """What identifies this process as an owner: host, machine, pid and its start."""
        pid = os.getpid()
        named = command or Path(sys.argv[0] or "python").name
        return cls(socket.gethostname(), pid, named, _this_machine(), _pid_start(pid) or "")


@dataclass(frozen=True, slots=True)
class Ownership:
    """The right to write, as long as ``generation`` is the present one."""

    generation: int
    owner: str
    ttl_s: float
    """An owner that has not renewed for this long may be taken over from; renew every third of it."""


@dataclass(slots=True)
class Watch:
    """How long, by our own clock, an owner's beat has not changed."""

    file: Path | None = None
    """Where observations are remembered between processes of this machine; None: in memory only."""
    clock: Callable[[], float] = boot_clock
    machine: str = field(default_factory=_this_machine)
    _seen: tuple[int, int, float] | None = None

    def age_s(self, generation: int, beat: int) -> float:
        """Seconds since this (generation, beat) was first seen; 0 when it is new."""
        now = self.clock()
        seen = self._seen if self._matches(self._seen, generation, beat, now) else self._remembered()
        if seen is None or not self._matches(seen, generation, beat, now):
            seen = (generation, beat, now)
            self._write(seen)
        self._seen = seen
        return now - seen[2]

    def forget(self) -> None:
        """Forget the ownership: nothing can be written with it from now on."""
        self._seen = None

    @staticmethod
    def _matches(seen: tuple[int, int, float] | None, generation: int, beat: int, now: float) -> bool:
        return seen is not None and seen[:2] == (generation, beat) and seen[2] <= now

    def _remembered(self) -> tuple[int, int, float] | None:
        value = read_json(self.file) if self.file is not None else None
        if not isinstance(value, dict) or value.get("machine") != self.machine:
            return None  # the clock starts anew with each boot
        try:
            return int(value["generation"]), int(value["beat"]), float(value["since"])
        except (KeyError, TypeError, ValueError):
            return None

    def _write(self, seen: tuple[int, int, float]) -> None:
        if self.file is None:
            return
        value = {"machine": self.machine, "generation": seen[0], "beat": seen[1], "since": seen[2]}
        try:
            write_json(self.file, value)
        except OSError:  # only a memory aid: without it a taker has to wait within one run
            self.file = None


def read_owner(session: Session, lock: bool = False) -> OwnerRow:
    """The ownership row; with ``lock`` no other transaction can change it until this one ends."""
    query = select(*_COLUMNS).where(_O.id == 1)
    return session.execute(query.with_for_update() if lock else query).one()  # FOR UPDATE is nothing on SQLite


def fence(session: Session, ownership: Ownership, at: float, marker: str | None = None) -> bool:
    """Check that we still own the state, renew, and keep everybody else out until this transaction ends.

    An ownership that ran out but that nobody took is simply renewed: nobody else can have written meanwhile.

    Returns:
        False if the write called ``marker`` has been committed already (only its answer was lost).

    Raises:
        NotOwner: somebody else took over, or we gave it up.
    """
    row = read_owner(session, lock=True)
    if row.generation != ownership.generation or row.owner != ownership.owner:
        raise refuse(row)
    if marker is not None and row.last_write == marker:
        return False
    values = {"beat": row.beat + 1, "renewed_at": at, "expires_at": at + ownership.ttl_s}
    if marker is not None:
        values["last_write"] = marker
    session.execute(update(_O).where(_O.id == 1).values(values))
    return True


def take(session: Session, info: OwnerInfo, owner: str, *, ttl_s: float, at: float, watch: Watch) -> Ownership | None:
    """Take the ownership within a write transaction if it is free or its holder is dead; None if it must wait."""
    row = read_owner(session, lock=True)
    if row.owner == owner:  # a commit whose answer was lost
        return Ownership(row.generation, owner, ttl_s)
    if not may_take(row, info, watch):
        return None
    # Not below the time, so that a restored backup, or a database made anew, outranks what ran on the old one.
    generation = max(row.generation + 1, int(at))
    values = {
        "generation": generation,
        "owner": owner,
        "host": info.host,
        "machine": info.machine,
        "pid": info.pid,
        "pid_start": info.pid_start,
        "command": info.command,
        "beat": row.beat + 1,
        "ttl_s": ttl_s,
        "acquired_at": at,
        "renewed_at": at,
        "expires_at": at + ttl_s,
    }
    session.execute(update(_O).where(_O.id == 1).values(values))
    watch.forget()
    return Ownership(generation, owner, ttl_s)


def give_up(session: Session, ownership: Ownership) -> None:
    """Release; nothing happens if somebody else owns it by now."""
    session.execute(
        update(_O)
        .where(_O.id == 1, _O.generation == ownership.generation, _O.owner == ownership.owner)
        .values(owner=None, beat=_O.beat + 1, expires_at=None)
    )


def new_owner_id() -> str:
    """A random id, one an acquisition."""
    return uuid.uuid4().hex


def refuse(row: OwnerRow, age_s: float | None = None) -> NotOwner:
    """The error that names the present owner."""
    if row.owner is None:
        return NotOwner("this process no longer owns the state: it was released; acquire it again")
    since = datetime.fromtimestamp(row.acquired_at or 0.0, UTC).isoformat(timespec="seconds")
    text = f"another controller owns the state: `{row.command}` on {row.host}, pid {row.pid}, since {since}"
    if age_s is not None:
        left = max(0.0, row.ttl_s - age_s)
        text += f"; if it is gone, its ownership can be taken over in {left:.0f} s"
    return NotOwner(text)


def process_is_dead(pid: int, pid_start: str) -> bool:
    """True if this machine's process of that pid and start time no longer runs (or is a zombie)."""
    found = _pid_start(pid)
    return found is None or pid_start not in {"", found}


def may_take(row: OwnerRow, info: OwnerInfo, watch: Watch) -> bool:
    """True if nobody owns the state, or its owner is proved dead (same machine), or its beat stands still."""
    if row.owner is None:
        return True
    if row.machine and row.machine == info.machine and process_is_dead(row.pid, row.pid_start):
        return True
    return bool(watch.age_s(row.generation, row.beat) >= row.ttl_s)


def _pid_start(pid: int) -> str | None:
    """Start time of a running process in clock ticks since boot, "" where /proc does not tell; None if it is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else ""
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before may hold spaces and brackets
    return None if fields[0] in "ZX" else fields[19]
