"""What controller and members of a job tell each other: the plan, and what a member writes in its own folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeAlias

from prompttuner.protocol.wire import Message

__all__ = [
    "ENDED_PHASES",
    "CheckpointPointer",
    "Done",
    "LeaseError",
    "Membership",
    "Outcome",
    "Parked",
    "Progress",
    "StorePlace",
]

Outcome: TypeAlias = Literal["reached", "exhausted", "stopped"]
"""How a job ended: its target is reached, its iterations are used up, or it was told to stop."""

KEPT_PREVIOUS = 200
"""Older generations than these are forgotten in ``previous``: their checkpoints are long superseded."""

ENDED_PHASES = frozenset({"left", "moved", "broken", "done", "failed"})
"""Phases of progress.json after which a member does no more step in that generation."""


@dataclass(frozen=True, slots=True)
class Membership(Message):
    """One generation of a job: ``members`` are agent ids and their index is the rank; none means pause."""

    FILE: ClassVar[str] = "plan.json"

    generation: int
    members: tuple[str, ...]
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Agent id -> IPv4 address or host name at which its lease can be reached by the other members."""
    lookup_s: float = 0.0
    """Seconds granted for a Prompt Bank lookup."""
    previous: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """Earlier generations and their members, newest last: where checkpoints can be, without listing folders."""
    by: str = "controller"
    """``controller``, or the agent id of a survivor."""
    stop: str | None = None
    """Why the job shall end; None: it shall not."""

    def __post_init__(self) -> None:
        if len(set(self.members)) != len(self.members):
            raise ValueError("an agent is named twice")

    def rank_of(self, agent: str) -> int | None:
        """The rank of ``agent``, None when it is no member."""
        return self.members.index(agent) if agent in self.members else None

    def after(
        self,
        members: Sequence[str],
        *,
        by: str,
        addresses: Mapping[str, str] | None = None,
        lookup_s: float = 0.0,
        stop: str | None = None,
    ) -> Membership:
        """The next generation with these members; addresses of those who were known stay known."""
        known = {**self.addresses, **(addresses or {})}
        return replace(
            self,
            generation=self.generation + 1,
            members=tuple(members),
            addresses={agent: known[agent] for agent in members if agent in known},
            lookup_s=lookup_s,
            previous=(*self.previous, (self.generation, self.members))[-KEPT_PREVIOUS:],
            by=by,
            stop=stop,
        )

    def without(self, agents: Iterable[str], *, by: str) -> Membership:
        """The next generation less these members: the only change that a member may make."""
        gone = set(agents)
        return self.after(
            [agent for agent in self.members if agent not in gone], by=by, lookup_s=self.lookup_s, stop=self.stop
        )


@dataclass(frozen=True, slots=True)
class Progress(Message):
    """Where a member stands in a generation; rewritten with each heartbeat. Times are Unix seconds."""

    FILE: ClassVar[str] = "progress.json"
    SPARSE: ClassVar[bool] = True

    beat: int = 0
    phase: str = ""
    """``starting|lookup|ready|running|left|moved|broken|done|failed``."""
    pid: int | None = None
    at: float | None = None
    started_at: float | None = None
    first_step_at: float | None = None
    model: str | None = None
    members: int | None = None
    start_step: int | None = None
    """Iterations done when this generation began; None before it has."""
    step: int | None = None
    """Iterations done."""
    loss: float | None = None
    """Training loss of the last iteration."""
    metric: float | None = None
    """The target's metric in the last evaluation."""
    best: float | None = None
    evaluations: tuple[tuple[int, float | None], ...] | None = None
    """(step, metric) of the last evaluations."""
    initial_prompt: str | None = None
    """Where the prompt came from that tuning began with."""
    iters_per_s: float | None = None
    throughput: Mapping[str, tuple[float, float]] | None = None
    """Number of members -> iterations, and the seconds that they took."""
    paced: bool | None = None
    why: str | None = None
    reason: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Done(Message):
    """How a job ended; written last, after ``result/`` is complete."""

    FILE: ClassVar[str] = "done.json"

    outcome: Outcome = "exhausted"
    step: int | None = None
    ita: int | None = None
    """Iterations to the target; None: not reached."""
    metric: float | None = None
    loss: float | None = None
    """Evaluation loss of the result."""
    train_s: float | None = None
    paced: bool = False


@dataclass(frozen=True, slots=True)
class LeaseError(Message):
    """Why a member's lease failed."""

    FILE: ClassVar[str] = "error.json"

    kind: str = "crash"
    """``data|memory|model|crash|protocol|host``; the last: this node's fault, the job goes on elsewhere."""
    message: str = ""
    trace: str = ""
    at: float | None = None


@dataclass(frozen=True, slots=True)
class CheckpointPointer(Message):
    """Which checkpoint of a member counts."""

    FILE: ClassVar[str] = "checkpoint.json"
    SPARSE: ClassVar[bool] = True

    step: int
    path: str | None = None
    """Folder beside it, ``checkpoint-<step>``; None: the paced state is in this file."""
    sha256: str | None = None
    looked_up: bool | None = None
    train_s: float | None = None
    paced: bool | None = None


@dataclass(frozen=True, slots=True)
class StorePlace(Message):
    """Where rank 0 serves a generation's store."""

    FILE: ClassVar[str] = "store.json"

    host: str
    port: int
    token: str
    """Prefix of all keys, which only readers of the job's folder know."""


@dataclass(frozen=True, slots=True)
class Parked(Message):
    """A worker under torchelastic stopped at a step boundary, and waits to be replaced."""

    FILE: ClassVar[str] = "parked.json"
    SPARSE: ClassVar[bool] = True

    parked: bool = True
    lost: str | None = None
    """Why it lost the others; None: it did not."""
