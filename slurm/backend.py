"""What the controller needs of a resource manager. Implementations: Slurm, and local processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from prompttuner.errors import BackendError
from prompttuner.slurm.words import Native

__all__ = [
    "NO_ANSWER",
    "AllocationRequest",
    "Backend",
    "EndSource",
    "Seen",
    "SubmitRefused",
    "SubmitTimeout",
    "SubmitUnknown",
]

NO_ANSWER = "NO_ANSWER"
"""``Seen.native_state`` of an UNKNOWN where the resource manager could not be asked: it says nothing at all."""


class EndSource(StrEnum):
    """Who says when an allocation ended, the most reliable first. That it has ended is proven in every case."""

    MANAGER = "manager"
    """The resource manager: the end that it charges."""
    FAREWELL = "farewell"
    """The agent's exit file, a moment before the manager's end."""
    BEAT = "beat"
    """Nobody: the last sign of life counts."""


class SubmitRefused(BackendError):
    """The resource manager said no: nothing was started."""


class SubmitUnknown(BackendError):
    """The call failed in a way that leaves open whether something was started (time-out, lost answer)."""


class SubmitTimeout(SubmitUnknown):
    """No answer in time: the call was ended. Each further try may cost a tick as much."""


@dataclass(frozen=True, slots=True)
class AllocationRequest:
    """One placeholder job to be asked for. Its row has been committed before."""

    uuid: str
    folder: Path
    """Its folder in the spool, with settings.json and order.json written."""
    pool: str
    gpus: int
    gpu_type: str | None
    walltime_s: int | None
    setup: tuple[str, ...] = ()
    """Shell lines run before the agent (modules, conda, exports)."""
    options: dict[str, str] = field(default_factory=dict)
    """Further sbatch parameters: account, qos, partition, constraint, mail..."""
    mem_mb: int | None = None
    """Memory that its agent needs; asked for where the site gives less and the user has set none."""

    @property
    def name(self) -> str:
        """Name of the resource manager, or of the allocation in it."""
        return f"pt-{self.uuid}"


@dataclass(frozen=True, slots=True)
class Seen:
    """One allocation as the resource manager sees it now."""

    state: Native
    native_id: str | None = None
    native_state: str = ""
    """The manager's own word (PREEMPTED, TIMEOUT, CANCELLED by 1000, ...), for events."""
    reason: str = ""
    node: str | None = None
    start_at: float | None = None
    """Unix seconds; for a pending one the manager's estimate."""
    ends_at: float | None = None
    """Unix seconds: end of the walltime; of an ended one when it ended."""
    end_source: EndSource | None = None
    """Of an ended one: where ``ends_at`` comes from."""


class Backend(Protocol):
    """All calls are bounded in time and raise BackendError; batched wherever one call can serve many."""

    @property
    def name(self) -> str:
        """Name of the resource manager."""

    def submit(self, request: AllocationRequest) -> str:
        """Ask for one allocation; returns the manager's id. Raises SubmitRefused or SubmitUnknown."""
        ...

    def cancel(self, native_ids: Sequence[str]) -> None:
        """End allocations; ids that are already gone are no error."""
        ...

    def observe(self, known: Sequence[tuple[str, str | None]]) -> dict[str, Seen]:
        """For (uuid, native id or None) pairs, what is known now, by uuid.

        One batched query, found by name when the id is not known (an intent whose answer was lost). Missing answers
        are Seen(UNKNOWN).
        """
        ...
