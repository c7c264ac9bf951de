"""What the tuner needs from the members of a job: their number and one sum."""

from __future__ import annotations

from typing import Protocol

import torch

__all__ = ["Collective", "Solo"]


class Collective(Protocol):
    """The members that work on a step together. An exception from `all_reduce_` leaves the tuner as it was before."""

    @property
    def rank(self) -> int:
        """Number of this member among the members, from 0."""

    @property
    def world(self) -> int:
        """Number of members."""

    def all_reduce_(self, tensor: torch.Tensor) -> None:
        """Sum a flat float64 tensor over all members, in place, with the same bits on each of them."""


class Solo:
    """One member: nothing to sum."""

    rank = 0
    world = 1

    def all_reduce_(self, tensor: torch.Tensor) -> None:
        """Leave the tensor as it is."""
