"""Time-outs and choices of elastic leases: the one owner of their defaults, carried whole from settings to worker."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from prompttuner.errors import ConfigError
from prompttuner.protocol.wire import Message, Unread

__all__ = ["ENV", "ElasticSettings"]

ENV = "PROMPTTUNER_ELASTIC"
"""The variable that carries them from an agent to its zygote."""


@dataclass(frozen=True, slots=True)
class ElasticSettings(Message):
    """All times in seconds."""

    loss_timeout_s: float = 15.0
    """A member that keeps others waiting for so long (frozen, network silent) is lost; a killed one often sooner."""
    grace_s: float = 3.0
    """After a loss, a member without a sign of life for so long is dead; not before do survivors write a plan."""
    join_timeout_s: float = 60.0
    """A newcomer that is not ready for so long after its plan is left out. The others go on tuning meanwhile."""
    poll_s: float = 0.2
    """How often a running member looks for a newer plan."""
    way: Literal["in_place", "restart"] = "in_place"
    """``in_place``: who stays keeps process and model; ``restart``: torchelastic starts workers anew."""
    backend: Literal["gloo", "nccl", "auto"] = "gloo"
    """``gloo``, ``nccl`` or ``auto`` (NCCL where every member has a GPU that NCCL can reach, else gloo)."""
    interface: str | None = None
    """Network interface for the members' traffic; None: the one that has the lease's address."""
    threads: int = 1
    """CPU threads of a worker."""
    checkpoint_s: float = 30.0
    checkpoint_steps: int = 50
    resident: bool = False
    """One worker keeps the model and runs leases in turn, as always where there is a CUDA device; not with restart."""
    bank_dirs: tuple[str, ...] = ()
    """Folders of the Prompt Bank, own one first."""

    def __post_init__(self) -> None:
        for name in ("loss_timeout_s", "join_timeout_s", "poll_s", "checkpoint_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"elastic.{name} must be above 0, not {getattr(self, name)}")
        if self.grace_s < 1 or self.threads < 1 or self.checkpoint_steps < 1:
            raise ConfigError("elastic.grace_s, threads and checkpoint_steps must be at least 1")
        if self.way not in {"in_place", "restart"}:
            raise ConfigError(f"elastic.way is in_place or restart, not {self.way!r}")
        if self.resident and self.way == "restart":
            raise ConfigError("elastic.way restart forks a worker for each generation; a resident one can not")
        if self.backend not in {"gloo", "nccl", "auto"}:
            raise ConfigError(f"elastic.backend is gloo, nccl or auto, not {self.backend!r}")

    def to_env(self) -> dict[str, str]:
        """The variable that carries these settings, to be added to a zygote's environment."""
        return {ENV: json.dumps(self.to_json())}

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Settings from the environment, defaults where there are none.

        Raises:
            ConfigError: not JSON, or a value that cannot be right.
        """
        try:
            found = cls.read(json.loads((os.environ if environ is None else environ).get(ENV, "{}")))
        except ValueError as error:
            raise ConfigError(f"{ENV} is not a JSON object of elastic settings: {error}") from error
        if isinstance(found, Unread):
            raise ConfigError(f"{ENV} is not a JSON object of elastic settings: {found.why}")
        return found
