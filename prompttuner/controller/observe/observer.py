"""What a tick finds out first: words of agents and jobs in the spool, and what the resource manager says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prompttuner.controller.act.gate import Gate
from prompttuner.controller.act.transaction import Tx
from prompttuner.controller.observe.bookkeeping import apply_agents, apply_jobs, signalled
from prompttuner.controller.observe.ends import EndTimes
from prompttuner.controller.observe.reports import AgentFacts, Facts, JobFacts, read_agent, read_job
from prompttuner.controller.observe.trials import note_starts
from prompttuner.controller.plan.measurements import remember
from prompttuner.controller.resources import Resources
from prompttuner.db.queries.live import Rows, live_rows
from prompttuner.db.tables.models import Allocation, Job
from prompttuner.errors import BackendError, SpoolError
from prompttuner.slurm.backend import Backend, Seen
from prompttuner.states import ALLOCATION_ENDED, JobState

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Observer"]

OBSERVE_S = 5.0
"""Facts that have not changed are looked at again after this long, for what time alone brings about (suspicion)."""
SIGNALLED_GAP_S = 1.0
"""Least time between two questions to Slurm while it has not yet said why an agent was signalled."""


class Observer:
    """Reads spool and resource manager, and brings the rows up to what they say."""

    def __init__(self, resources: Resources, backend: Backend, gate: Gate) -> None:
        self._res = resources
        self._backend = backend
        self._gate = gate
        self.facts: Facts | None = None
        """What was last read and written to the rows: the same again needs no transaction."""
        self.heard: dict[str, tuple[int, int]] = {}
        """(owner, seq) of the order that each agent says it obeys."""
        self._ends = EndTimes()
        self._all_looked_at = float("-inf")
        """When all facts, not only the new ones, were last compared with their rows (Unix time)."""

    def look_at_all(self) -> None:
        """Compare every row in the next tick."""
        self._all_looked_at = float("-inf")

    def observe(self, rows: Rows) -> Rows:
        """Read, then update the rows in one transaction if there is anything to look at; returns them as they are."""
        res = self._res
        due = self.facts is None or not 0 <= res.now() - self._all_looked_at < OBSERVE_S
        facts = self._look(rows, thorough=due)
        news = facts if due or self.facts is None else facts.since(self.facts)
        if not news:
            return rows

        def work(session: Session) -> Rows:
            tx = Tx(session, res.now())
            present = live_rows(session, statuses=True)
            apply_agents(tx, present.allocations, news.agents, news.seen, res.settings.suspect_s)
            touched = {name: facts.jobs[name] for name in facts.jobs.keys() & _concerned(news, present.jobs)}
            apply_jobs(tx, present.jobs, touched, {a.uuid: a for a in present.allocations})
            note_starts(tx, res, present.allocations, facts.agents)
            remember(tx)
            settled[:] = self._ends.settle(tx, news.seen)
            ended[:] = [a for a in present.allocations if a.state in ALLOCATION_ENDED]
            return present.still_live()

        settled: list[str] = []
        ended: list[Allocation] = []
        rows = res.state.write(work)
        self._ends.forget(settled)
        for allocation in ended:
            self._ends.note(allocation, res.now())
        self.facts = facts
        if due:
            self._all_looked_at = res.now()
        return rows

    def _look(self, rows: Rows, thorough: bool) -> Facts:
        """Read the spool and ask the resource manager; what cannot be read is told and left out, never fatal.

        ``thorough``: see :func:`prompttuner.controller.observe.reports.read_job`.
        """
        agents = _agents(self._res, rows.allocations)
        self.heard = {
            uuid: (told.status.order_owner, told.status.order_seq)
            for uuid, told in agents.items()
            if told.status is not None
        }
        running = _jobs(self._res, [job for job in rows.jobs if job.state == JobState.RUNNING], thorough)
        at_once = any(signalled(told) for told in agents.values())
        return Facts(agents, running, self._ask_manager(rows.allocations, at_once=at_once))

    def _ask_manager(self, allocations: Sequence[Allocation], at_once: bool) -> dict[str, Seen]:
        """One batched question, no more often than the site allows; no answer means that nothing is known.

        ``at_once``: an agent was ended by a signal, and whether by preemption or by its user matters for what follows.
        """
        settings = self._res.settings
        gap = settings.squeue_min_s if settings.backend == "slurm" else 0.0
        gap = min(SIGNALLED_GAP_S, gap) if at_once else gap
        ended = self._ends.to_ask(self._res) if settings.backend == "slurm" else []
        if not (allocations or ended) or not self._gate.may_ask(self._res.now(), gap):
            return {}
        try:
            return self._backend.observe([*((a.uuid, a.native_id) for a in allocations), *ended])
        except BackendError as error:
            self._res.warn(str(error))
            return {}


def _agents(res: Resources, allocations: Sequence[Allocation]) -> dict[str, AgentFacts]:
    facts = {}
    for allocation in allocations:
        try:
            facts[allocation.uuid] = told = read_agent(res.spool, allocation)
        except (SpoolError, OSError) as error:  # one unreadable folder must not stop the others
            res.warn(str(error))
            continue
        for why in told.unread:
            res.warn(why)
    return facts


def _jobs(res: Resources, jobs: Sequence[Job], thorough: bool) -> dict[str, JobFacts]:
    facts = {}
    for job in jobs:
        try:
            facts[job.id] = told = read_job(res.spool, job, thorough)
        except (SpoolError, OSError) as error:
            res.warn(str(error))
            continue
        for why in told.unread:
            res.warn(why)
    return facts


def _concerned(news: Facts, jobs: Sequence[Job]) -> set[str]:
    """Jobs of which there is news, of their own or of a member's."""
    return {job.id for job in jobs if job.id in news.jobs or not news.agents.keys().isdisjoint(job.members)}
