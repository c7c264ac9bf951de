"""What an agent and its zygote, and a zygote and its workers, tell each other: JSON lines over a socket pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from prompttuner.protocol.wire import Message

__all__ = ["Told", "ZygoteEvent", "ZygoteRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteRequest(Message):
    """What an agent asks of its zygote, which hands leases and idle work on to its worker."""

    SPARSE: ClassVar[bool] = True

    op: Literal["load", "lease", "idle_work", "end_lease", "kill_lease", "exit"]
    model: str = ""
    """Of ``load`` and ``idle_work``."""
    dtype: str = "auto"
    trust_remote_code: bool = False
    job_dir: str = ""
    """Of ``lease``, as the next three."""
    agent: str = ""
    generation: int = 0
    address: str = ""
    bank_dir: str = ""
    """Of ``idle_work``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Message):
    """What a worker tells its zygote: how a lease ended, or idle work."""

    SPARSE: ClassVar[bool] = True

    outcome: str | None = None
    """Of a lease: ``done|left|failed|crashed|terminated``."""
    code: int | None = None
    """Exit code of the worker; None: it never ran."""
    error: str | None = None
    generation: int | None = None
    """The newest one that the lease knew."""
    idle_work: str | None = None
    """``done`` or ``failed``; then this is not about a lease."""
    features: int | None = None
    trials: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteEvent(Message):
    """What a zygote tells its agent."""

    SPARSE: ClassVar[bool] = True

    ev: Literal["ready", "loaded", "load_failed", "lease_started", "lease_ended", "gone"]
    pid: int | None = None
    """Of the zygote (``ready``) or of the worker (``lease_started``)."""
    model: str = ""
    """Of ``loaded`` and ``load_failed``."""
    seconds: float = 0.0
    bytes: int | None = None
    models: tuple[str, ...] | None = None
    """Those that are resident now."""
    threads: int | None = None
    outcome: str | None = None
    """Of ``lease_ended``: ``done|left|failed|crashed|terminated``."""
    code: int | None = None
    error: str | None = None
    kind: Literal["job", "site", "host"] | None = None
    """Of ``load_failed``: whose fault it is."""
    generation: int | None = None
