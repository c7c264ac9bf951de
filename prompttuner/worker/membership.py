"""Who works for a job: plans of members by generation, claimed so that no generation has two authors (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prompttuner.errors import SpoolError
from prompttuner.files import create_json, make_private_dir, read_json, write_json

__all__ = [
    "ENDED_PHASES",
    "Membership",
    "member_dir",
    "member_file",
    "propose",
    "read_membership",
    "read_progress",
]

KEPT_PREVIOUS = 200
"""Older generations than these are forgotten in ``previous``: their checkpoints are long superseded."""

ENDED_PHASES = frozenset({"left", "moved", "broken", "done", "failed"})
"""Phases of progress.json after which a member does no more step in that generation."""


@dataclass(frozen=True, slots=True)
class Membership:
    """One generation of a job: ``members`` are agent ids and their index is the rank; none means pause."""

    generation: int
    members: tuple[str, ...]
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Agent id -> IPv4 address or host name at which its lease can be reached by the other members."""
    lookup_s: float = 0.0
    previous: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """Earlier generations and their members, newest last: where checkpoints can be, without listing folders."""
    by: str = "controller"
    stop: str | None = None

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

    def to_json(self) -> dict[str, Any]:
        """The content of plan.json and of a claim."""
        return {
            "generation": self.generation,
            "members": list(self.members),
            "addresses": dict(self.addresses),
            "lookup_s": self.lookup_s,
            "previous": [[generation, list(members)] for generation, members in self.previous],
            "by": self.by,
            "stop": self.stop,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Membership:
        """Read plan.json's content; unknown keys are ignored.

        Raises:
            SpoolError: not a plan.
        """
        try:
            members = tuple(str(agent) for agent in value["members"])
            if len(set(members)) != len(members):
                raise ValueError("an agent is named twice")
            return cls(
                generation=int(value["generation"]),
                members=members,
                addresses={str(k): str(v) for k, v in (value.get("addresses") or {}).items()},
                lookup_s=float(value.get("lookup_s") or 0.0),
                previous=tuple((int(g), tuple(str(a) for a in m)) for g, m in value.get("previous") or ()),
                by=str(value.get("by", "controller")),
                stop=None if value.get("stop") is None else str(value["stop"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpoolError(f"not a membership plan ({error}); was plan.json edited by hand?") from error


def member_dir(job_dir: Path, generation: int, agent: str) -> Path:
    """The folder that only this member writes, and only in this generation."""
    return Path(member_file(job_dir, generation, agent, ""))


def member_file(job_dir: Path | str, generation: int, agent: str, name: str) -> str:
    """A file in the folder of :func:`member_dir`; text, since a controller's tick asks for thousands."""
    return f"{job_dir}/g{generation}/{agent}/{name}"


def read_progress(job_dir: Path, generation: int, agent: str) -> dict[str, Any]:
    """A member's progress.json, empty when it has not written one."""
    value = read_json(member_file(job_dir, generation, agent, "progress.json"))
    return value if isinstance(value, dict) else {}


def _claim_path(job_dir: Path | str, generation: int) -> str:
    return f"{job_dir}/claims/{generation}.json"


def read_membership(job_dir: Path | str) -> Membership | None:
    """The newest plan of a job; None before the first.

    ``plan.json`` is where to start; a claim of a later generation is a plan whose author died or was slow before
    replacing plan.json, and counts. So the truth is the chain of claims, which no two writers can fork.
    """
    value = read_json(f"{job_dir}/plan.json")
    newest = Membership.from_json(value) if value is not None else None
    while True:
        claimed = read_json(_claim_path(job_dir, newest.generation + 1 if newest is not None else 1))
        if claimed is None:
            return newest
        newest = Membership.from_json(claimed)


def propose(job_dir: Path, plan: Membership) -> bool:
    """Make ``plan`` the job's newest generation; False when somebody else has claimed that generation before.

    Proposing the same plan again, after a crash in the middle, is no conflict. After False, read again and propose a
    higher generation if a change is still needed. The members' folders and the files that others will poll are made
    first: on NFS a name that was looked up in vain stays missing for a minute.

    Raises:
        OSError: disk full, folder missing.
    """
    for agent in plan.members:
        folder = make_private_dir(member_dir(job_dir, plan.generation, agent))
        for name in ("progress.json", "store.json"):
            create_json(folder / name, {})
    make_private_dir(job_dir / "claims")
    claim = Path(_claim_path(job_dir, plan.generation))
    if not create_json(claim, plan.to_json()) and read_json(claim) != plan.to_json():
        return False
    write_json(job_dir / "plan.json", plan.to_json())
    return True
