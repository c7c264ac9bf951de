"""What a member works at, step by step: the tuner, or a paced stand-in; and how its state travels to newcomers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from prompttuner.engine.collective import Collective
from prompttuner.protocol.jobs import Done, Outcome, Progress
from prompttuner.worker.elastic.group import Group

__all__ = ["Stepped", "Task", "agree_on_state"]


@dataclass(frozen=True, slots=True)
class Stepped:
    """One applied step."""

    flags: list[float]
    """Each extra scalar, summed over the members."""
    seconds: float


class Task(Protocol):
    """Steps whose outcome does not depend on the number of members. After an exception the state is as before."""

    @property
    def step(self) -> int:
        """Steps applied so far."""
        ...

    @property
    def position(self) -> int:
        """Grows with everything that is applied (steps, evaluations): equal positions are equal states."""
        ...

    @property
    def outcome(self) -> Outcome | None:
        """``reached`` or ``exhausted`` once there is nothing left to do; the same on every member."""
        ...

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation comes before the next step."""

    def evaluate(self, collective: Collective) -> None:
        """Score the evaluation set, each member its share, when ``evaluation_due``."""
        ...

    def share(self, possible: bool) -> None:
        """Whether all members can share a prompt's pass: what they sum in a step depends on it."""
        ...

    def sample_ids(self, step: int) -> Sequence[int]:
        """The global batch of a step; member ``rank`` of ``world`` takes ``[rank::world]``."""
        ...

    def train_step(self, collective: Collective, flags: Sequence[float]) -> Stepped:
        """Apply one step, with ``flags`` summed in the same all-reduce."""
        ...

    def pack(self) -> bytes:
        """The whole state as safetensors bytes."""
        ...

    def save(self, folder: Path) -> None:
        """Save a checkpoint as ``folder/checkpoint-<step>/``, then name it in ``folder/checkpoint.json``."""
        ...

    def noted(self, progress: Progress) -> Progress:
        """A progress with this task's figures."""
        ...

    def write_result(self, folder: Path, outcome: Outcome) -> Done:
        """Complete ``folder/result/``; returns what done.json says."""
        ...


ALIKE = 0.25
"""Members add it to their position when they tell it: the build of before tells whole numbers."""


def agree_on_state(group: Group, task: Task | None) -> tuple[int, bytes | None, bool]:
    """Give every member the state of the most advanced one.

    States are a function of the position alone, so the highest is as right as any, also after a loss in which some
    members had applied the last step and others not.

    Args:
        group: the members; one of them at least has a state.
        task: this member's, None for a newcomer.

    Returns:
        The rank that the state comes from; the state where this member needs it (None: has it already); and whether
        all members are of a build that can share a prompt's pass, or one was started before the upgrade to it.

    Raises:
        PeerLost: a member was lost on the way.
    """
    places = torch.zeros(group.world, dtype=torch.float64)
    places[group.rank] = ALIKE + (0.0 if task is None else task.position + 1.0)
    group.all_reduce_(places)
    alike = bool((places % 1 == ALIKE).all())
    newest = places.max()
    source = int(torch.nonzero(places == newest)[0])
    if bool((places == newest).all()):
        return source, None, alike
    own = task is not None and places[group.rank] == newest
    data = task.pack() if task is not None and group.rank == source else b""
    size = torch.tensor([float(len(data))], dtype=torch.float64)
    group.broadcast_(size, source)
    payload = torch.zeros(int(size), dtype=torch.uint8)
    if data:
        payload.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    group.broadcast_(payload, source)
    return source, None if own else payload.numpy().tobytes(), alike
