"""The members' process group: one sum a step; an unreachable member is an error of its own."""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

__all__ = ["Group", "PeerLost", "open_group"]


class PeerLost(Exception):
    """The members could not finish a collective: somebody died, froze, or the network is silent."""


class Group:
    """A :class:`prompttuner.engine.collective.Collective` over torch.distributed's default group of this process."""

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank = rank
        self.world = world
        self._device = device

    def all_reduce_(self, tensor: torch.Tensor) -> None:
        """Sum a flat tensor over all members, in place.

        Raises:
            PeerLost: not finished within the group's time-out, or a member's connection broke.
        """
        if self.world == 1:
            return
        try:
            if tensor.device == self._device:
                dist.all_reduce(tensor)
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)  # an error must show before the step is applied
            else:
                moved = tensor.to(self._device)
                dist.all_reduce(moved)
                tensor.copy_(moved)
        except RuntimeError as error:
            raise PeerLost(str(error)) from error

    def broadcast_(self, tensor: torch.Tensor, source: int) -> None:
        """Copy ``source``'s tensor to all members, in place. Raises PeerLost as ``all_reduce_`` does."""
        if self.world == 1:
            return
        try:
            moved = tensor.to(self._device)
            dist.broadcast(moved, source)
            tensor.copy_(moved)
        except RuntimeError as error:
            raise PeerLost(str(error)) from error

    def close(self) -> None:
        """Leave the group; connections close, so that members who still wait for us see it at once."""
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def open_group(store: Store, rank: int, world: int, *, backend: str, interface: str, timeout_s: float) -> Group:
    """Connect the members of a generation whose store all of them have reached.

    Args:
        store: the generation's store; only start-up data goes through it, never a pickle.
        rank: this member's place in the plan.
        world: number of members; a group of one connects to nobody.
        backend: ``gloo`` or ``nccl``.
        interface: network interface for the connections.
        timeout_s: seconds after which a collective that waits for another member fails.

    Raises:
        PeerLost: the members could not be connected.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
    if world == 1:
        return Group(0, 1, device)
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
    extra: dict[str, Any] = {"device_id": device} if backend == "nccl" else {}
    try:
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s), **extra
        )
    except RuntimeError as error:
        with contextlib.suppress(RuntimeError, AssertionError):
            dist.destroy_process_group()
        raise PeerLost(str(error)) from error
    return Group(rank, world, device)
