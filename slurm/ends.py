"""Whose fault it was that an allocation ended before it was warm: from the agent's word, Slurm's, and the script's."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from prompttuner.protocol.agents import Farewell

__all__ = ["EXIT_CODE", "STAGE", "Fault", "Verdict", "judge", "last_lines", "staged"]

STAGE = "stage"
"""File of an agent's folder: how far the script has got, one of the three words below."""
EXIT_CODE = "exit_code"
"""File of an agent's folder: the script's exit code."""
SITE_SETUP, JOB_SETUP, LAUNCH = "setup", "job-setup", "launch"

LINES = 6
LINE_LIMIT = 300
TAIL_BYTES = 8192


class Fault(StrEnum):
    """Who must mend it."""

    JOB = "job"
    """Its model or its own ``setup``: the same for all jobs of its pool."""
    POOL = "pool"
    """What is asked of Slurm for it, interpreter, launcher, or something that nobody can tell."""
    SITE = "site"
    """The settings' set-up lines or interface: nothing can start anywhere."""
    HOST = "host"
    """This node."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is made of the evidence."""

    fault: Fault
    reason: str
    """For people: exit code and last lines."""


_BY_SLURM = {
    "NODE_FAIL": Fault.HOST,
    "BOOT_FAIL": Fault.HOST,
    "LAUNCH_FAILED": Fault.HOST,
    "OUT_OF_MEMORY": Fault.POOL,
}
_BY_AGENT = {
    "model": Fault.JOB,
    "model unread": Fault.POOL,
    "zygote": Fault.POOL,
    "crash": Fault.POOL,
    "host": Fault.HOST,
}
"""By the reason of a farewell."""
_NOBODYS = ("CANCELLED", "PREEMPTED", "REVOKED", "DEADLINE")
"""Slurm's words for ends that somebody wanted."""

_UNSURE = ("", "VANISHED")
"""Slurm knows nothing of it (any more): unless its script has begun, it may never have run."""


def staged(folder: Path, site: Sequence[str], job: Sequence[str]) -> list[str]:
    """Set-up lines of a batch script, with lines between them that note how far it has got."""
    place = shlex.quote(str(folder))
    return [
        f"trap {shlex.quote(f'echo $? >{place}/{EXIT_CODE}')} EXIT",
        f"echo {SITE_SETUP} >{place}/{STAGE}",
        *site,
        f"echo {JOB_SETUP} >{place}/{STAGE}",
        *job,
        f"echo {LAUNCH} >{place}/{STAGE}",
    ]


def judge(folder: Path, farewell: Farewell | None, native_state: str) -> Verdict | None:
    """The verdict on an allocation that has ended before it was warm; None where nobody is to blame.

    Args:
        folder: the agent's.
        farewell: the agent's last word, if there is one.
        native_state: the manager's own word for the end; empty where only the agent has told of it.
    """
    word = native_state.partition(" ")[0]
    if farewell is not None:
        fault = _BY_AGENT.get(farewell.reason)
        if farewell.reason == "crash" and farewell.detail.startswith("ConfigError"):
            fault = Fault.SITE  # a setting that cannot be: no pool can start
        return None if fault is None else Verdict(fault, _said(farewell.detail or farewell.reason, folder, code=False))
    if word in _BY_SLURM:
        return Verdict(_BY_SLURM[word], _said(f"Slurm says {word}", folder))
    stage = _word_in(folder / STAGE)
    if word.startswith(_NOBODYS) or (word in _UNSURE and not stage):
        return None
    if stage == JOB_SETUP:
        return Verdict(Fault.JOB, _said("the job's set-up failed", folder))
    if stage == SITE_SETUP:
        return Verdict(Fault.SITE, _said("the site's set-up failed", folder))
    return Verdict(Fault.POOL, _said("the agent did not start, or was killed", folder))


def _said(what: str, folder: Path, *, code: bool = True) -> str:
    number = _word_in(folder / EXIT_CODE) if code else ""
    head = f"{what} (exit code {number})" if number else what
    lines = last_lines(folder / "log.txt")
    return f"{head}; last lines: {' | '.join(lines)}" if lines and code else head


def last_lines(path: Path, lines: int = LINES) -> list[str]:
    """The last lines of a log that say anything, shortened, without control characters; none if it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as handle:
        handle.seek(max(0, os.fstat(handle.fileno()).st_size - TAIL_BYTES))
        text = handle.read().decode(errors="replace")
        clean = ["".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines()]
        return [line[:LINE_LIMIT] for line in clean if line][-lines:]
    return []


def _word_in(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()[:40]
    return ""
