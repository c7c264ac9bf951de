"""What controller and agent tell each other, one file each in the agent's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.wire import Message, Unread

__all__ = ["PROTOCOL", "AgentSettings", "AgentStatus", "Farewell", "GivenOrder", "Instance", "KnownStatus", "Order"]

PROTOCOL = 1
"""Raised when an older agent could misunderstand a newer controller; such agents are drained, not confused."""


_FORMER_ELASTIC = {
    "threads": "threads",
    "poll_s": "poll_s",
    "loss_timeout_s": "loss_timeout_s",
    "checkpoint_every_s": "checkpoint_s",
    "checkpoint_every_steps": "checkpoint_steps",
    "interface": "interface",
    "bank_dirs": "bank_dirs",
}
"""Keys of settings.json in the release before, and the fields of ``ElasticSettings`` that they are now."""


@dataclass(frozen=True, slots=True)
class AgentSettings(Message):
    """What an agent is; written by the controller before the allocation is asked for, never changed."""

    FILE: ClassVar[str] = "settings.json"

    agent: str = ""
    pool: str = ""
    model: str = ""
    dtype: str = "auto"
    trust_remote_code: tuple[str, ...] = ()
    gpus: int = 1
    idle_limit_s: float = 600.0
    heartbeat_s: float = 5.0
    poll_s: float = 0.2
    """How often it looks at its order."""
    elastic: ElasticSettings = field(default_factory=ElasticSettings)
    """Of its leases, handed on whole."""
    jobs_dir: str = ""
    signals: tuple[str, ...] = ("TERM", "USR1", "USR2")
    stay_warm: bool = True
    """False where the site forbids placeholders: the agent ends with its job."""
    walltime_end_margin_s: float = 60.0
    walltime_s: float | None = None
    protocol: int = PROTOCOL

    @classmethod
    def read(cls, value: object) -> Self | Unread:
        """Also settings of the release before, which held those of its leases one by one."""
        if isinstance(value, Mapping) and "elastic" not in value:
            former = {new: value[old] for old, new in _FORMER_ELASTIC.items() if old in value}
            value = {**value, "elastic": former}
        return cls._from_fields(value)

    def trusts(self, model: str) -> bool:
        """Whether ``model``'s own Python code may run: the list names models by folder or hub id.

        In settings of former releases it held the names that a user typed, and meant this agent's first model.
        """
        return model in self.trust_remote_code or (model == self.model and bool(self.trust_remote_code))


@dataclass(frozen=True, slots=True)
class Order(Message):
    """What the agent shall do; rewritten by the controller, polled by the agent."""

    FILE: ClassVar[str] = "order.json"

    seq: int = 0
    """Grows with each order of one owner."""
    owner: int = 0
    """Fencing generation of the controller that wrote it: an agent ignores orders of a lower one."""
    admit: bool = True
    """False: exit at once."""
    model: str | None = None
    """LLM to hold; None: the one of the settings."""
    job: str | None = None
    generation: int = 0
    drain: bool = False
    """Take no new job."""
    stop: bool = False
    """End now."""
    at: float = 0.0
    """When it was written (Unix seconds)."""


@dataclass(frozen=True, slots=True)
class GivenOrder(Order):
    """An order as its allocation's row remembers it."""

    seen_s: float | None = None
    """Seconds until the agent took it, once that is known."""


@dataclass(slots=True)
class AgentStatus(Message):
    """What the agent does; rewritten by the agent at each change and each heartbeat. Its only writer changes it."""

    FILE: ClassVar[str] = "status.json"

    beat: int = 0
    """Grows with each heartbeat."""
    instance: str = ""
    """Which process is the agent."""
    state: str = "starting"
    """``starting|loading|warm|busy|switching|draining|ended``."""
    order_seq: int = -1
    order_owner: int = -1
    """Number and owner of the order that it obeys; -1 before it has seen one."""
    model: str | None = None
    models: tuple[str, ...] = ()
    """Resident ones."""
    job: str | None = None
    generation: int = 0
    lease: str = ""
    """``starting|lookup|running|left|done|failed|terminated|crashed``."""
    error: str = ""
    idle_s: float = 0.0
    pid: int = 0
    host: str = ""
    address: str = ""
    native_id: str | None = None
    """The resource manager's id."""
    gpu: Mapping[str, str | int] = field(default_factory=dict)
    """``name``, ``memory_mib``, ``count``; empty without one."""
    load_s: float = 0.0
    start_s: float = 0.0
    left_s: float | None = None
    """Walltime left by the agent's own clock; a time of day would be wrong where the clocks of hosts differ."""
    leases: int = 0
    loads: int = 0
    protocol: int = PROTOCOL


@dataclass(slots=True)
class KnownStatus(AgentStatus):
    """A status as its allocation's row remembers it."""

    seen_at: float | None = None
    """When its heartbeat was seen by the controller (Unix seconds)."""


@dataclass(frozen=True, slots=True)
class Instance(Message):
    """Which process is the agent; created by the first process of an allocation, exclusively."""

    FILE: ClassVar[str] = "instance.json"

    instance: str = ""
    pid: int = 0
    host: str = ""
    native_id: str | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Farewell(Message):
    """The agent's last word: proof that it has ended, and why."""

    FILE: ClassVar[str] = "exit.json"

    reason: str = "ended"
    detail: str = ""
    at: float = 0.0
    instance: str = ""
