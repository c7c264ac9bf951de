"""What the spool says right now: statuses of agents and progress of jobs, read without writing anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from prompttuner.protocol.agents import AgentStatus, Farewell, Instance
from prompttuner.protocol.files import read_message
from prompttuner.protocol.jobs import Done, LeaseError, Membership, Progress
from prompttuner.protocol.lookup import LookupReport
from prompttuner.protocol.wire import Message, Unread
from prompttuner.slurm.spool import Spool, read_own
from prompttuner.worker.membership import member_file, read_membership

if TYPE_CHECKING:
    from prompttuner.db.tables.models import Allocation, Job
    from prompttuner.slurm.backend import Seen

__all__ = ["AgentFacts", "Facts", "JobFacts", "read_agent", "read_job"]

M = TypeVar("M", bound=Message)

WORKING_PHASES = frozenset({"starting", "lookup", "running"})
"""Phases of progress.json in which a member goes on by itself."""


@dataclass(slots=True)
class AgentFacts:
    """An agent's own words. All None until its process has started."""

    instance: Instance | None
    status: AgentStatus | None
    farewell: Farewell | None
    """Its exit file: positive proof that it has ended."""
    unread: tuple[str, ...] = ()
    """Why files of it could not be understood: they count as not written."""


@dataclass(slots=True)
class JobFacts:
    """A running job's own words, of its newest generation only."""

    plan: Membership | None
    progress: Progress | None = None
    lookup: LookupReport | None = None
    done: tuple[str, Done] | None = None
    """With the member that says so."""
    errors: dict[str, LeaseError] = field(default_factory=dict)
    """By member."""
    unread: tuple[str, ...] = ()
    """Why files of it could not be understood: they count as not written."""


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
    unread: list[str] = []

    def told(kind: type[M]) -> M | None:
        return _kept(read_own(kind, f"{folder}/{kind.FILE}"), unread)

    status = told(AgentStatus)
    instance = None if status is not None and allocation.admitted else told(Instance)
    ended = status is not None and status.state == "ended"
    farewell = told(Farewell) if ended or (status is None and instance is not None) else None
    return AgentFacts(instance, status, farewell, tuple(unread))


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
    unread: list[str] = []

    def said(kind: type[M], member: str) -> M | None:
        return _kept(read_message(kind, member_file(folder, plan.generation, member, kind.FILE)), unread)

    facts.progress = said(Progress, plan.members[0])
    if not job.lookup_done:
        facts.lookup = said(LookupReport, plan.members[0])
    if thorough or facts.progress is None or facts.progress.phase not in WORKING_PHASES:
        for member in plan.members:
            done, error = said(Done, member), said(LeaseError, member)
            if done is not None:
                facts.done = (member, done)
            if error is not None:
                facts.errors[member] = error
    facts.unread = tuple(unread)
    return facts


def _kept(message: M | Unread | None, unread: list[str]) -> M | None:
    """The message; why it cannot be understood goes to ``unread``."""
    if isinstance(message, Unread):
        unread.append(message.why)
        return None
    return message
