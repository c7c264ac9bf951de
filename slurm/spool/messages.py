"""What controller and agent tell each other: plain data, one JSON file each, unknown keys ignored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from prompttuner.slurm.spool.layout import PROTOCOL

__all__ = ["AgentSettings", "AgentStatus", "Message", "Order"]


@dataclass(slots=True)
class Message:
    """Base of the messages: to and from plain JSON values."""

    FILE: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Build from parsed JSON; unknown keys are ignored, missing ones take their default."""
        given = dict(value or {})
        names: Iterable[str] = cls.__slots__  # of its fields
        return cls(**{name: given[name] for name in names if name in given})


@dataclass(slots=True)
class AgentSettings(Message):
    """What an agent is; written by the controller before the allocation is asked for, never changed."""

    FILE: ClassVar[str] = "settings.json"

    agent: str = ""
    pool: str = ""
    model: str = ""
    dtype: str = "auto"
    trust_remote_code: list[str] = field(default_factory=list)
    gpus: int = 1
    threads: int = 1
    idle_limit_s: float = 600.0
    heartbeat_s: float = 5.0
    poll_s: float = 0.2
    loss_timeout_s: float = 15.0
    checkpoint_every_s: float = 30.0
    checkpoint_every_steps: int = 50
    interface: str | None = None
    bank_dirs: list[str] = field(default_factory=list)
    jobs_dir: str = ""
    signals: list[str] = field(default_factory=lambda: ["TERM", "USR1", "USR2"])
    stay_warm: bool = True
    """False where the site forbids placeholders: the agent ends with its job."""
    walltime_end_margin_s: float = 60.0
    walltime_s: float | None = None
    protocol: int = PROTOCOL

    def trusts(self, model: str) -> bool:
        """Whether ``model``'s own Python code may run: the list names models by folder or hub id. In settings of former
        releases it held the names that a user typed, and meant this agent's first model."""
        return model in self.trust_remote_code or (model == self.model and bool(self.trust_remote_code))


@dataclass(slots=True)
class Order(Message):
    """What the agent shall do; rewritten by the controller, polled by the agent."""

    FILE: ClassVar[str] = "order.json"

    seq: int = 0
    owner: int = 0
    """Fencing generation of the controller that wrote it: an agent ignores orders of a lower one."""
    admit: bool = True
    model: str | None = None
    """LLM to hold; None: the one of the settings."""
    job: str | None = None
    generation: int = 0
    drain: bool = False
    stop: bool = False


@dataclass(slots=True)
class AgentStatus(Message):
    """What the agent does; rewritten by the agent at each change and each heartbeat."""

    FILE: ClassVar[str] = "status.json"

    beat: int = 0
    instance: str = ""
    state: str = "starting"
    order_seq: int = -1
    order_owner: int = -1
    """Number and owner of the order that it obeys; -1 before it has seen one."""
    model: str | None = None
    models: list[str] = field(default_factory=list)
    job: str | None = None
    generation: int = 0
    lease: str = ""
    error: str = ""
    idle_s: float = 0.0
    pid: int = 0
    host: str = ""
    address: str = ""
    native_id: str | None = None
    gpu: dict[str, Any] = field(default_factory=dict)
    load_s: float = 0.0
    start_s: float = 0.0
    left_s: float | None = None
    """Walltime left by the agent's own clock; a time of day would be wrong where the clocks of hosts differ."""
    leases: int = 0
    loads: int = 0
    protocol: int = PROTOCOL
