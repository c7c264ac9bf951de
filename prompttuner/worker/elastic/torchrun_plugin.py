"""Entry point of ``torchrun.handlers``: what makes ``torchrun --rdzv-backend=prompttuner`` work.

torch loads it while it imports its own rendezvous package, so nothing of torch may be imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

__all__ = ["torchrun_handler"]


def torchrun_handler() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """What makes a handler from torchrun's parameters."""

    def create(params: RendezvousParameters) -> RendezvousHandler:
        from prompttuner.worker.elastic.rendezvous import create_rendezvous

        return create_rendezvous(params)

    return create
