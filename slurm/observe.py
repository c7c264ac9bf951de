"""Where our allocations stand: squeue, then sacct, then scontrol, then the agent's own exit file.

One batched question a source; an end needs positive proof. A source that fails is left alone for a while.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prompttuner.errors import BackendError
from prompttuner.protocol.agents import Farewell
from prompttuner.protocol.files import read_message, understood
from prompttuner.slurm.answers import (
    Row,
    parse_record,
    parse_sacct,
    parse_squeue,
)
from prompttuner.slurm.backend import NO_ANSWER, EndSource, Seen
from prompttuner.slurm.command import ClientMissing, SlurmClient, chunks
from prompttuner.slurm.limits import Breaker
from prompttuner.slurm.site.memory import OUT_OF_MEMORY, died_of_memory
from prompttuner.slurm.words import NAME_PREFIX, SACCT_FIELDS, SQUEUE_FORMAT, Native, native_of, parse_time

__all__ = ["EXITED", "NOT_FOUND", "VANISHED", "Observer", "end_by_agent", "last_beat"]

NOT_FOUND = "NOT_FOUND"
"""Word of an UNKNOWN: Slurm was asked and does not know it (an intent that never arrived, or sacct is late)."""
VANISHED = "VANISHED"
"""Word of an ENDED: Slurm says that the id is invalid, and the agent has been silent."""
EXITED = "EXITED"
"""Word of an ENDED: the agent's exit file says so, Slurm no longer knows."""

MAYBE_MEMORY = frozenset({"OUT_OF_MEMORY", "FAILED", "CANCELLED", "COMPLETED"})
"""States in which Slurm leaves a job that it, or the kernel, killed for its memory."""
SACCT_SINCE = "now-30days"
"""Without a start, sacct hides what was submitted before midnight."""
SCONTROL_A_TICK = 5
"""scontrol takes one id a call; the rest waits for the next tick."""
SILENT_S = 180.0
"""An agent whose status changed within it lives, whatever Slurm says of its id."""
_LIVELINESS = {Native.RUNNING: 4, Native.PENDING: 3, Native.COMPLETING: 2, Native.UNKNOWN: 1, Native.ENDED: 0}


@dataclass(slots=True)
class _Source:
    """A command that may fail: asked again only after a pause that grows."""

    name: str
    breaker: Breaker

    def ask(self, now: float, question: Callable[[], list[Row]]) -> list[Row] | None:
        """Its rows, or None when it failed or is being left alone."""
        if not self.breaker.allows(now):
            return None
        try:
            rows = question()
        except BackendError as error:
            self.breaker.failure(now, str(error))
            return None
        self.breaker.success()
        return rows


class Observer:
    """Observes the allocations of this user.

    Args:
        client: runs the commands.
        agents_dir: ``spool/agents``; exit and status files of agents are read there.
        accounting: ``auto`` asks sacct until it says that there is none.
        clock: Unix seconds.
    """

    def __init__(
        self,
        client: SlurmClient,
        agents_dir: Path,
        accounting: str = "auto",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._agents, self._clock = client, agents_dir, clock
        self._squeue = _Source("squeue", Breaker(threshold=3, pause_s=20.0, max_pause_s=300.0))
        self._sacct = _Source("sacct", Breaker(threshold=3, pause_s=60.0, max_pause_s=600.0))
        self.accounting = accounting != "no"
        self._accounting_demanded = accounting == "yes"

    def observe(self, known: Sequence[tuple[str, str | None]]) -> dict[str, Seen]:
        """What is known now of each (uuid, Slurm id or None), by uuid. Never raises for a Slurm that is away."""
        if not known:
            return {}
        now = self._clock()
        seen = self._ask_all(known, now)
        return {uuid: self._with_memory(uuid, view) for uuid, view in seen.items()}

    def _with_memory(self, uuid: str, view: Seen) -> Seen:
        """An end for want of memory is told as that: accounting may call it FAILED or CANCELLED."""
        if view.state is not Native.ENDED or view.native_state.partition(" ")[0] not in MAYBE_MEMORY:
            return view
        if view.native_state == "OUT_OF_MEMORY" or died_of_memory(self._agents / uuid / "log.txt"):
            return replace(view, reason=f"{OUT_OF_MEMORY}: set slurm.mem to more than its agent was given")
        return view

    def _ask_all(self, known: Sequence[tuple[str, str | None]], now: float) -> dict[str, Seen]:
        rows = self._squeue.ask(now, self._ask_squeue)
        if rows is None:
            why = self._squeue.breaker.last_error
            return {
                uuid: self._own_word(uuid) or Seen(Native.UNKNOWN, number, NO_ANSWER, why) for uuid, number in known
            }
        seen = _match(known, rows)
        missing = [pair for pair in known if pair[0] not in seen]
        if missing and self.accounting:
            answered = self._sacct.ask(now, lambda: self._ask_sacct(missing))
            # A living state in accounting without a row in squeue proves nothing: accounting is late, or lost the end.
            ended = [row for row in answered or [] if row.state is Native.ENDED]
            seen.update(_match(missing, ended))
        left = SCONTROL_A_TICK
        for uuid, number in known:
            if uuid in seen:
                continue
            own = self._own_word(uuid)
            if own is None and number is not None and left > 0 and not self._is_alive(uuid, now):
                left -= 1
                own = self._ask_scontrol(uuid, number)
            seen[uuid] = own or Seen(Native.UNKNOWN, number, NOT_FOUND)
        return seen

    def _ask_squeue(self) -> list[Row]:
        return parse_squeue(
            self._client.run(
                "squeue", "--noheader", "--all", "--states=all", f"--user={os.getuid()}", f"--format={SQUEUE_FORMAT}"
            )
        )

    def _ask_sacct(self, missing: Sequence[tuple[str, str | None]]) -> list[Row]:
        rows: list[Row] = []
        numbers = [number for _, number in missing if number is not None]
        names = [NAME_PREFIX + uuid for uuid, number in missing if number is None]
        try:
            for option, items in (("--jobs", numbers), ("--name", names)):
                for piece in chunks(items):
                    rows += parse_sacct(
                        self._client.run(
                            "sacct", "--noheader", "--parsable2", "--allocations", "--duplicates",
                            f"--user={os.getuid()}", f"--starttime={SACCT_SINCE}",
                            f"--format={SACCT_FIELDS}", f"{option}={','.join(piece)}",
                        )
                    )  # fmt: skip
        except ClientMissing:
            self.accounting = False
            raise
        except BackendError as error:
            if "accounting storage is disabled" in str(error).lower() and not self._accounting_demanded:
                self.accounting = False
                return rows
            raise
        return rows

    def _ask_scontrol(self, uuid: str, number: str) -> Seen | None:
        """Proof that the id is gone, or the job after all."""
        try:
            records = parse_record(self._client.run("scontrol", "--oneliner", "show", "job", number))
        except BackendError as error:
            if "invalid job id" in str(error).lower():
                return self._vanished(uuid, number, "Slurm does not know this job id any more")
            return Seen(Native.UNKNOWN, number, NO_ANSWER, str(error))
        for record in records:
            if record.get("JobId") != number:
                continue
            if record.get("JobName") != NAME_PREFIX + uuid:
                return self._vanished(uuid, number, "Slurm has given this job id to another job")
            word = record.get("JobState", "")
            row = Row(
                number,
                native_of(word),
                word,
                record.get("Reason", ""),
                record.get("NodeList") or None,
                parse_time(record.get("StartTime", "")),
                parse_time(record.get("EndTime", "")),
            )
            return _seen(row)
        return None

    def _own_word(self, uuid: str) -> Seen | None:
        """The end as the agent itself wrote it."""
        said = understood(read_message(Farewell, self._agents / uuid / Farewell.FILE))
        if said is None:
            return None
        ended_at, source = end_by_agent(self._agents / uuid, said)
        return Seen(Native.ENDED, None, EXITED, said.reason, ends_at=ended_at, end_source=source)

    def _vanished(self, uuid: str, number: str, why: str) -> Seen:
        """Proof of an end whose time nobody tells: the last sign of life counts."""
        ended_at, source = end_by_agent(self._agents / uuid, None)
        return Seen(Native.ENDED, number, VANISHED, why, ends_at=ended_at, end_source=source)

    def _is_alive(self, uuid: str, now: float) -> bool:
        beat = last_beat(self._agents / uuid)
        return beat is not None and abs(now - beat) < SILENT_S


def end_by_agent(folder: Path, farewell: Farewell | None) -> tuple[float | None, EndSource | None]:
    """When an agent that has ended was last heard of: its farewell's time, else its last beat, else (None, None)."""
    if farewell is not None and farewell.at > 0:
        return farewell.at, EndSource.FAREWELL
    beat = last_beat(folder)
    return beat, None if beat is None else EndSource.BEAT


def last_beat(folder: Path) -> float | None:
    """When an agent last wrote its status, by the clock of the shared file system; None if it never did."""
    try:
        return (folder / "status.json").stat().st_mtime
    except OSError:
        return None


def _seen(row: Row) -> Seen:
    """A row as the controller knows it. An ended job that had not started shows a start after its end, or none."""
    ended = row.state is Native.ENDED
    start = row.start_at
    if ended and start is not None and row.ends_at is not None and start > row.ends_at:
        start = None
    source = EndSource.MANAGER if ended and row.ends_at is not None else None
    return Seen(row.state, row.job_id, row.word, row.reason, row.node, start, row.ends_at, source)


def _match(known: Iterable[tuple[str, str | None]], rows: Iterable[Row]) -> dict[str, Seen]:
    """Rows that belong to the allocations: by id where it is known (and the name agrees), else by name."""
    by_uuid: dict[str, list[Row]] = {}
    for row in rows:
        if row.uuid is not None:
            by_uuid.setdefault(row.uuid, []).append(row)
    seen = {}
    for uuid, number in known:
        candidates = [row for row in by_uuid.get(uuid, []) if number is None or row.job_id == number]
        if candidates:
            best = max(candidates, key=lambda row: (_LIVELINESS[row.state], int(row.job_id)))
            seen[uuid] = _seen(best)
    return seen
