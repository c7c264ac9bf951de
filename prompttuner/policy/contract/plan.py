"""What a policy decides: actions with reasons, and when it wants to be asked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from prompttuner.policy.contract.snapshot import Snapshot

__all__ = [
    "Action",
    "Assign",
    "Demote",
    "Plan",
    "Policy",
    "Reason",
    "Reject",
    "Release",
    "Request",
    "Restore",
    "Stop",
    "SwitchModel",
    "Why",
]


class Why:
    """A reason that is put into words only when somebody reads it: ``str(reason)``.

    ``template`` is a ``str.format`` template for ``values``; planning thousands of simulated jobs then pays no
    formatting. Equal to (and hashes like) its words, so plans with lazy and ready-made reasons compare.
    """

    __slots__ = ("template", "values")

    def __init__(self, template: str, *values: object) -> None:
        self.template = template
        self.values = values

    def __str__(self) -> str:
        return self.template.format(*self.values)

    def __repr__(self) -> str:
        return repr(str(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str | Why) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


Reason: TypeAlias = str | Why
"""Words with numbers, for people; read it with ``str()``."""


@dataclass(frozen=True, slots=True)
class Request:
    """Ask Slurm for one more allocation that will load this pool's LLM (a cold start)."""

    pool: int
    reason: Reason
    job: str | None = None
    """The job it is meant for (a reservation the policy sees again in ``Agents.job``); None for the warm pool."""


@dataclass(frozen=True, slots=True)
class Release:
    """Give an allocation back: withdraw a REQUESTED one, end a STARTING or WARM one. Never a BUSY one."""

    agent: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Assign:
    """These agents, and no others, are the members of this job from now on (a new generation).

    More agents than before is growth, fewer is shrinking, none is a pause at a checkpoint. Agents must be WARM,
    or BUSY with this very job.
    """

    job: str
    agents: tuple[str, ...]
    reason: Reason
    lookup_s: float = 0.0
    """Seconds the first lease may spend on a Prompt Bank lookup before tuning; 0 skips it."""


@dataclass(frozen=True, slots=True)
class SwitchModel:
    """A WARM agent loads another pool's LLM within its allocation."""

    agent: str
    pool: int
    reason: Reason
    job: str | None = None


@dataclass(frozen=True, slots=True)
class Demote:
    """The job's deadline no longer counts (it turns best effort); it is told to the user."""

    job: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Restore:
    """A demoted job can make its deadline after all."""

    job: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Reject:
    """Never run this job (admission control of some baselines; counts as a violation, costs nothing)."""

    job: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Stop:
    """End the job unfinished: its deadline has passed and the user asked to stop then."""

    job: str
    reason: Reason


Action: TypeAlias = Request | Release | Assign | SwitchModel | Demote | Restore | Reject | Stop


@dataclass(slots=True)
class Plan:
    """Actions, notes on jobs, and when the policy wants to be asked again."""

    actions: list[Action] = field(default_factory=list)
    wake_at: float = float("inf")
    """Nothing needs deciding before this time unless something happens."""
    notes: Mapping[str, Reason] = field(default_factory=dict)
    """For jobs without an action: why it waits, why it keeps k GPUs, what would change that (may be lazy)."""


class Policy(Protocol):
    """Pure and deterministic: the same snapshot gives the same plan; no I/O, no memory between calls."""

    @property
    def name(self) -> str:
        """Name of the policy, with its switches."""

    def plan(self, snapshot: Snapshot) -> Plan:
        """The plan for this snapshot; pure: the same snapshot gives the same plan."""
