"""What one member writes in one generation: progress, journal, the end or the error; nothing outside its folder."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from prompttuner.files import make_private_dir
from prompttuner.protocol.files import write_message
from prompttuner.protocol.jobs import Done, LeaseError, Progress
from prompttuner.worker.membership import member_dir

__all__ = ["MemberFiles", "Note"]

Note: TypeAlias = Callable[[Progress], Progress]
"""Puts what somebody knows (the task, its pace) into a progress."""

BEAT_S = 0.5
"""Progress is written so often by a thread, so that a long step still shows as life and a frozen process does not."""


class MemberFiles:
    """The folder ``g<generation>/<agent>/`` of a job, which has exactly one writer."""

    def __init__(self, job_dir: Path, generation: int, agent: str) -> None:
        self.folder = make_private_dir(member_dir(job_dir, generation, agent))
        self.generation = generation
        self._journal: int | None = None
        self._progress = Progress(phase="starting", pid=os.getpid(), started_at=time.time())
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._write()
        self._beats = threading.Thread(target=self._beat, name="progress", daemon=True)
        self._beats.start()

    @property
    def phase(self) -> str:
        """The phase that was last written."""
        return self._progress.phase

    def progress(self, phase: str, *notes: Note, **values: Any) -> None:
        """Note values (fields of :class:`Progress`); a new phase is written at once, the rest with the next beat."""
        changed = phase != self.phase
        self.note(*notes, **values, phase=phase)
        if changed:
            self._write()

    def note(self, *notes: Note, **values: Any) -> None:
        """Note values for the next beat, phase unchanged."""
        with self._lock:
            progress = replace(self._progress, **values)
            for note in notes:
                progress = note(progress)
            self._progress = progress

    def note_now(self, *notes: Note, **values: Any) -> None:
        """Note values and write them at once."""
        self.note(*notes, **values)
        self._write()

    def _write(self) -> None:
        with self._lock:
            self._progress = replace(self._progress, beat=self._progress.beat + 1, at=time.time())
            write_message(self.folder / Progress.FILE, self._progress, durable=False)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            # A full disk fails the next write of the main thread too, which reports it.
            with contextlib.suppress(OSError):
                self._write()

    def journal(self, **line: Any) -> None:
        """Append one line. The file stays open: one write a step, no flush (the kernel has it if we are killed)."""
        if self._journal is None:
            self._journal = os.open(self.folder / "journal.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._journal, (json.dumps(line, separators=(",", ":")) + "\n").encode())

    def shard(self, step: int, rank: int, world: int, ids: Sequence[int]) -> None:
        """Journal what this member computes for a step, before it does; see docs/reference/elastic.md."""
        now = round(time.time(), 4)
        self.journal(g=self.generation, step=step, rank=rank, world=world, pid=os.getpid(), at=now, ids=list(ids))

    def done(self, report: Done) -> None:
        """Write done.json; the caller has completed ``result/`` before."""
        write_message(self.folder / Done.FILE, report)

    def error(self, kind: str, message: str, trace: str) -> None:
        """Write error.json, best effort: the disk may be what is wrong."""
        with contextlib.suppress(OSError):
            write_message(self.folder / LeaseError.FILE, LeaseError(kind, message, trace))

    def close(self) -> None:
        """Stop the beats and close the journal."""
        self._closed.set()
        self._beats.join()
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None
