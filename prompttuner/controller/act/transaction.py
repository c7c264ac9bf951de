"""One write transaction of the controller: rows change together with the event that says why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from prompttuner.controller.plan.notes import NOTE_LIMIT
from prompttuner.controller.plan.pools import Pool
from prompttuner.db import Change, NewEvent
from prompttuner.db.queries import allocations as allocation_rows
from prompttuner.db.queries import events as event_rows
from prompttuner.db.queries import jobs as job_rows
from prompttuner.db.queries import leases, live
from prompttuner.db.tables.models import Allocation, Job, Lease
from prompttuner.db.tables.recorded import status_of
from prompttuner.slurm.backend import EndSource
from prompttuner.states import ALLOCATION_ENDED, JOB_ENDED, AllocationState, JobState

__all__ = ["WENT_ON", "Tx"]

CAUSE_LIMIT = 200
WENT_ON = "the members went on by themselves"
"""How the cause begins where survivors of a loss have written the plan."""


@dataclass(slots=True)
class Tx:
    """Bound to one session; use it inside ``Store.transact`` only.

    Plain columns of loaded rows are assigned; states, members and events change through the methods here. What was
    assigned is written together at the end of the transaction, in few statements; flush before asking the database
    for it.
    """

    session: Session
    now: float
    measured: list[tuple[str, str, str, float]] = field(default_factory=list)
    """(pool, model, kind, seconds) of starts seen in this transaction, for the profiles."""
    speeds: list[tuple[str, str, int, float]] = field(default_factory=list)
    """(pool, model, members, iterations a second), likewise."""
    _leases: dict[str, list[Lease]] = field(default_factory=dict)
    """Open leases by job, where they were loaded beforehand."""

    def __post_init__(self) -> None:
        self.session.autoflush = False

    def recall(self, jobs: Iterable[str]) -> None:
        """Load at once what changing the members of these jobs needs: two statements, however many they are."""
        ids = list(jobs)
        self._leases.update(live.open_leases(self.session, ids))
        live.load_histories(self.session, ids)

    # -- jobs -------------------------------------------------------------------------------------------------

    def job_state(self, job: Job, state: JobState, cause: str, **data: Any) -> None:
        """Change a job's state, checked, with its event."""
        changes = [Change(job.id, state.value, cause, data=data)]
        _take(job, job_rows.change(self.session, changes, self.now, {job.id: job.state})[job.id].items())

    def new_members(self, job: Job, members: Sequence[str], cause: str, generation: int | None = None) -> None:
        """Give the job a new generation with these members: leases of the old one end, those of the new one begin."""
        old = list(job.members)
        job.generation = job.generation + 1 if generation is None else generation
        self._end_leases(job, cause)
        for member in old:
            if member not in members:
                self._free(member)
        for member in members:
            allocation = self.session.get_one(Allocation, member)
            allocation.job_id, allocation.reserved_for, allocation.idle_since = job.id, None, None
            if allocation.state == AllocationState.WARM:
                self.allocation_state(allocation, AllocationState.BUSY, f"leased to {job.id}")
        self._set_members(job, list(members))
        leases.grant(self.session, job.id, job.generation, job.members, at=self.now, cause=cause)
        if members and job.state == JobState.QUEUED:
            job.started_at = job.started_at or self.now
            self.job_state(job, JobState.RUNNING, cause)
        elif not members and job.state == JobState.RUNNING:
            self.job_state(job, JobState.QUEUED, cause)

    def end_job(self, job: Job, state: JobState, cause: str, error: str | None = None) -> None:
        """End a job: its members are free, its plan becomes empty."""
        job.generation += 1
        self._end_leases(job, cause)
        for member in list(job.members):
            self._free(member)
        self._set_members(job, [])
        job.note = cause[:NOTE_LIMIT]
        if error:
            job.error = error
        self.job_state(job, state, cause)

    def _set_members(self, job: Job, members: list[str]) -> None:
        job.members = members
        if job.history or members:
            job.history = job_rows.with_workers(job.history, self.now, len(members))

    def _end_leases(self, job: Job, cause: str) -> None:
        leases_now = self._leases.pop(job.id, None)
        if leases_now is None:
            leases_now = live.open_leases(self.session, [job.id])[job.id]
        for lease in leases_now:
            allocation = self.session.get(Allocation, lease.allocation)
            gpus = 1 if allocation is None else allocation.gpus
            gone_at = None if allocation is None else allocation.ended_at
            end = self.now if gone_at is None else max(lease.granted_at, min(self.now, gone_at))
            job.gpu_seconds += max(0.0, end - lease.granted_at) * gpus
            lease.ended_at, lease.end_reason, lease.steps = end, cause[:CAUSE_LIMIT], job.step

    def _free(self, member: str) -> None:
        allocation = self.session.get(Allocation, member)
        if allocation is None or allocation.state in ALLOCATION_ENDED:
            return
        allocation.job_id = None
        allocation.idle_since = self.now
        if allocation.state == AllocationState.BUSY:
            leaving = allocation.drain or _is_leaving(allocation)
            next_state = AllocationState.DRAINING if leaving else AllocationState.WARM
            self.allocation_state(allocation, next_state, "its lease has ended")

    # -- allocations ------------------------------------------------------------------------------------------

    def new_allocation(self, uuid: str, pool: Pool, gpus: int, job: str | None, cause: str) -> None:
        """The intent of an allocation; to be committed before Slurm is asked."""
        row = {
            "uuid": uuid,
            "pool": pool.key,
            "model": pool.model,
            "place": pool.place_record().to_json(),
            "gpus": gpus,
            "reserved_for": job,
        }
        allocation_rows.add(self.session, [row], self.now, cause)

    def allocation_state(
        self,
        allocation: Allocation,
        state: AllocationState,
        cause: str,
        fields: Mapping[str, float | str | None] | None = None,
        **data: Any,
    ) -> None:
        """Change an allocation's state, and ``fields`` with it, checked, with its event."""
        idle = {"idle_since": self.now} if state == AllocationState.WARM else {}
        changes = [Change(allocation.uuid, state.value, cause, fields={**idle, **(fields or {})}, data=data)]
        known = {allocation.uuid: allocation.state}
        _take(allocation, allocation_rows.change(self.session, changes, self.now, known)[allocation.uuid].items())

    def end_allocation(
        self,
        allocation: Allocation,
        reason: str,
        cause: str,
        ended_at: float | None = None,
        source: EndSource | None = None,
    ) -> None:
        """It has ended, with proof. Jobs lose it as a member where their facts are applied.

        ``ended_at``: when, by the word of ``source``; None: nobody knows, so it counts as held until now.
        """
        allocation.end_reason, allocation.reserved_for, allocation.reason = reason[:CAUSE_LIMIT], None, ""
        fields: dict[str, float | str | None] = {}
        if ended_at is not None:
            # Clocks of hosts differ: an end before the start, or in the future, would make the time held nonsense.
            ended_at = max(min(ended_at, self.now), allocation.started_at or allocation.created_at)
            fields = {"ended_at": ended_at, "end_source": None if source is None else source.value}
        self.allocation_state(allocation, AllocationState.ENDED, cause, fields)

    def abandon_allocation(self, allocation: Allocation, cause: str) -> None:
        """Its UUID is never sent, and never admitted, again."""
        allocation.end_reason, allocation.reserved_for = "abandoned", None
        self.allocation_state(allocation, AllocationState.ABANDONED, cause)

    def last_job_of(self, allocation: Allocation) -> Job | None:
        """The job that an allocation works for, or last worked for, if that has not ended."""
        name = allocation.job_id or live.last_job_of(self.session, allocation.uuid)
        job = None if name is None else self.session.get(Job, name)
        return None if job is None or job.state in JOB_ENDED else job

    # -- the rest ---------------------------------------------------------------------------------------------

    def event(
        self,
        kind: str,
        *,
        job: Job | None = None,
        allocation: Allocation | None = None,
        cause: str = "",
        data: Mapping[str, Collection[str] | float | int | None] | None = None,
    ) -> None:
        """Record something that is no change of state."""
        event = NewEvent(
            kind, cause, None if job is None else job.id, None if allocation is None else allocation.uuid, data
        )
        event_rows.append(self.session, [event], self.now)

    def learn(self, allocation: Allocation, kind: str, seconds: float) -> None:
        """Remember how long a start took, for the pool's profile."""
        self.measured.append((allocation.pool, allocation.model, kind, float(seconds)))


def _is_leaving(allocation: Allocation) -> bool:
    status = status_of(allocation)
    return status is not None and status.state in {"draining", "ended"}


def _take(row: Job | Allocation, written: Iterable[tuple[str, object]]) -> None:
    """Bring a loaded row up to columns that a statement has written, as loading it again would."""
    for name, value in written:
        set_committed_value(row, name, value)
