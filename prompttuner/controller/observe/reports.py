"""What the spool says right now: statuses of agents and progress of jobs, read without writing anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prompttuner.files import read_json
from prompttuner.slurm.spool import AgentStatus, Spool, read_own_json
from prompttuner.worker.membership import Membership, member_file, read_membership

if TYPE_CHECKING:
    from prompttuner.db.tables.models import Allocation, Job
    from prompttuner.slurm.backend import Seen

__all__ = ["AgentFacts", "Facts", "JobFacts", "read_agent", "read_job"]

WORKING_PHASES = frozenset({"starting", "lookup", "running"})
"""Phases of progress.json in which a member goes on by itself."""


@dataclass(slots=True)
class AgentFacts:
    """An agent's own words. All None until its process has started."""

    instance: dict[str, Any] | None
    status: AgentStatus | None
    farewell: dict[str, Any] | None
    """Its exit file: positive proof that it has ended."""


@dataclass(slots=True)
class JobFacts:
    """A running job's own words, of its newest generation only."""

    plan: Membership | None
    progress: dict[str, Any] | None = None
    lookup: dict[str, Any] | None = None
    done: tuple[str, dict[str, Any]] | None = None
    """(member, done.json)."""
    errors: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By member."""


@dataclass(slots=True)
class Facts:
    """All that was read in one tick."""

    agents: dict[str, AgentFacts]
    """By allocation."""
    jobs: dict[str, JobFacts]
    """By job."""
    seen: dict[str, Seen]
    """By allocation: what the resource manager says; empty where it was not asked."""

    def since(self, before: Facts) -> Facts:
        """What is new. An agent's own word goes with what the resource manager says of it."""
        seen = self.seen if self.seen != before.seen else {}
        return Facts(
            {name: told for name, told in self.agents.items() if name in seen or told != before.agents.get(name)},
            {name: told for name, told in self.jobs.items() if told != before.jobs.get(name)},
            seen,
        )

    def __bool__(self) -> bool:
        return bool(self.agents or self.jobs or self.seen)


def read_agent(spool: Spool, allocation: Allocation) -> AgentFacts:
    """Read status, claim and farewell of one allocation's agent.

    Raises:
        SpoolError: a file was written by another user.
    """
    folder = str(spool.agent(allocation.uuid))
    status = read_own_json(f"{folder}/{AgentStatus.FILE}")
    instance = None if status is not None and allocation.admitted else read_own_json(f"{folder}/instance.json")
    ended = status is not None and status.get("state") == "ended"
    farewell = read_own_json(f"{folder}/exit.json") if ended or (status is None and instance is not None) else None
    return AgentFacts(instance, None if status is None else AgentStatus.from_json(status), farewell)


def read_job(spool: Spool, job: Job, thorough: bool = True) -> JobFacts:
    """Read what the members of a running job have written in its newest generation.

    ``thorough``: look for done.json and error.json of every member even while rank 0 says that it works; else only
    once it says that it has ended (with a thousand running jobs that is most of a tick's reading).
    """
    folder = str(spool.job(job.id))
    plan = read_membership(folder)
    facts = JobFacts(plan)
    if plan is None or not plan.members:
        return facts
    facts.progress = _said(folder, plan, plan.members[0], "progress.json") or None
    if not job.lookup_done:
        facts.lookup = _said(folder, plan, plan.members[0], "lookup.json")
    if not thorough and facts.progress is not None and facts.progress.get("phase") in WORKING_PHASES:
        return facts
    for member in plan.members:
        done = _said(folder, plan, member, "done.json")
        if done is not None:
            facts.done = (member, done)
        error = _said(folder, plan, member, "error.json")
        if error is not None:
            facts.errors[member] = error
    return facts


def _said(folder: str, plan: Membership, member: str, name: str) -> dict[str, Any] | None:
    value = read_json(member_file(folder, plan.generation, member, name))
    return value if isinstance(value, dict) else None
