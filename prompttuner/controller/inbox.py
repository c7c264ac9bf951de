"""Apply the requests that commands left in the inbox: each once, however often it is read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from prompttuner.controller.act.limits import check_within_cap
from prompttuner.controller.act.projection import prepare_job
from prompttuner.controller.act.transaction import Tx
from prompttuner.controller.plan.pools import pool_of
from prompttuner.controller.resources import Resources
from prompttuner.db.queries import events, live, trials
from prompttuner.db.queries import jobs as job_rows
from prompttuner.db.queries import requests as request_rows
from prompttuner.db.queries.events import NewEvent
from prompttuner.db.tables.models import Allocation, Job
from prompttuner.errors import NotFound, SpecError, SpoolError, StateError
from prompttuner.protocol.files import write_message
from prompttuner.protocol.requests import (
    REQUEST_ID,
    AllocationRequest,
    Cancel,
    Drain,
    Hold,
    JobRequest,
    NewJob,
    Purge,
    Release,
    ReleaseAgent,
    Reply,
    Request,
    ResumePool,
    Scale,
    Submit,
    Update,
    read_request,
)
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.protocol.wire import Json, Unread
from prompttuner.slurm.spool import Spool, read_own_json
from prompttuner.states import JOB_ENDED, AllocationState, JobState
from prompttuner.words import Counted

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Inbox", "pending_requests"]


def pending_requests(spool: Spool) -> list[Path]:
    """Request files in the order in which they were made (one directory listing)."""
    with os.scandir(spool.inbox) as entries:
        names = [entry for entry in entries if entry.name.endswith(".json") and not entry.name.startswith(".")]
        found = []
        for entry in names:
            with contextlib.suppress(FileNotFoundError):  # taken by another controller meanwhile
                found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.path))
    return [Path(path) for _, path in sorted(found)]


class Inbox:
    """Applies requests. It remembers only what could not be read a moment ago."""

    def __init__(self, resources: Resources) -> None:
        self._res = resources
        self.unread: frozenset[Path] = frozenset()
        """Requests that could not be read in the last tick: no reason to tick again at once."""

    def apply(self) -> int:
        """Apply all waiting requests; returns how many. One that is wrong is answered with its error, not dropped."""
        res = self._res
        count, unread = 0, set[Path]()
        for path in pending_requests(res.spool):
            try:
                asked = _read(path)
            except SpoolError as error:
                _set_aside(res, path, str(error))
                continue
            except OSError as error:  # a network file system that cannot show it now will do so later
                res.warn(f"request {path} cannot be read now: {error.strerror or error}")
                unread.add(path)
                continue
            write_message(res.spool.reply(asked.id), _apply_once(res, asked))
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            count += 1
        self.unread = frozenset(unread)
        return count


@dataclass(frozen=True, slots=True)
class _Asked:
    """A file of the inbox that names itself as a request."""

    id: str
    content: Mapping[str, Json]

    def request(self) -> Request:
        """What is asked for.

        Raises:
            SpecError: it makes no sense.
        """
        request = read_request(self.content)
        if isinstance(request, Unread):
            raise SpecError(f"the {self.kind} request cannot be understood: {request.why}")
        return request

    @property
    def kind(self) -> str:
        return str(self.content.get("kind"))


def _read(path: Path) -> _Asked:
    """A request.

    Raises:
        SpoolError: it is none, now or later, or another user's.
        OSError: it cannot be read now.
    """
    value = read_own_json(path)
    if value is None:
        path.read_bytes()  # whether it was the file system that kept it from us
        value = read_own_json(path)
    name = value.get("id") if isinstance(value, dict) else None
    if not isinstance(name, str) or REQUEST_ID.fullmatch(name) is None:
        raise SpoolError("it is not a request")
    return _Asked(name, value)


def _set_aside(res: Resources, path: Path, why: str) -> None:
    """A file that no tick can take is kept for people, under a name that no tick looks at again."""
    res.warn(f"{path.name} in the inbox is set aside as {path.name}.broken: {why}")
    with contextlib.suppress(OSError):
        path.rename(path.with_name(path.name + ".broken"))


def _apply_once(res: Resources, asked: _Asked) -> Reply:
    known = res.state.query(lambda session: request_rows.applied(session, [asked.id])).get(asked.id)
    if known is not None:
        return Reply(ok=bool(known.ok), message=str(known.message), at=res.now())
    try:
        request = asked.request()
        _prepare(res, request)

        def work(session: Session) -> str:
            tx = Tx(session, res.now())
            message = _apply(tx, request)
            _record(session, asked, True, message, tx.now)
            return message

        return Reply(ok=True, message=res.state.write(work), at=res.now())
    except (SpecError, NotFound, StateError) as error:
        text = str(error)
    res.state.write(lambda session: _record(session, asked, False, text, res.now()))
    return Reply(ok=False, message=text, at=res.now())


def _record(session: Session, asked: _Asked, ok: bool, message: str, at: float) -> None:
    base = Request.read(asked.content)  # what all requests say, also those that cannot be understood
    known = base if isinstance(base, Request) else Request()
    request_rows.record(
        session, asked.id, asked.kind, requested_at=known.at or at, by=known.by, at=at, ok=ok, message=message
    )


def _prepare(res: Resources, request: Request) -> None:
    """What is done before the transaction: the caps are checked, and a job's folder is made."""
    if isinstance(request, Scale):
        check_within_cap(res.settings, request.members or 1)
    elif isinstance(request, Submit):
        for new in request.jobs:
            check_within_cap(res.settings, new.spec.min_gpus)
        names = [new.job for new in request.jobs]
        known = res.state.query(lambda session: job_rows.existing(session, names))
        for new in request.jobs:
            if new.job not in known:  # else its spec is frozen
                prepare_job(res.spool, new.job, new.spec)


def _apply(tx: Tx, request: Request) -> str:
    """Apply one request; returns what its asker is told."""
    match request:
        case Submit():
            return _submit(tx, request)
        case Cancel():
            job = _active_job(tx, request)
            tx.end_job(job, JobState.CANCELLED, f"cancelled by {request.who}")
            return f"cancelled {job.id}"
        case Update():
            return _update(tx, request)
        case Hold():
            return _hold(tx, request)
        case Release():
            return _release(tx, request)
        case Scale():
            return _scale(tx, request)
        case Drain():
            return _drain(tx, request)
        case ReleaseAgent():
            return _release_agent(tx, request)
        case ResumePool():
            return _resume_pool(tx, request)
        case Purge():
            return _purge(tx, request)
    raise SpecError(f"no controller of this version does what {type(request).__name__} asks for")


def _submit(tx: Tx, request: Submit) -> str:
    known = job_rows.existing(tx.session, [new.job for new in request.jobs])
    fresh = [new for new in request.jobs if new.job not in known]
    rows = [_row_of(new, request) for new in fresh]
    if rows:
        job_rows.add(tx.session, rows, tx.now, f"submitted by {request.by}")
    if len(request.jobs) == 1:
        name = request.jobs[0].job
        return f"submitted {name}" if fresh else f"{name} was submitted before"
    before = f"; {len(known)} of them before" if known else ""
    return f"submitted {Counted(len(request.jobs), 'job')}{before}"


class JobColumns(TypedDict):
    """The columns of a new job's row."""

    id: str
    name: str
    owner: str
    state: JobState
    spec: dict[str, Json]
    pool: str
    model: str
    submitted_at: float
    deadline_at: float | None
    priority: int
    min_gpus: int
    max_gpus: int
    on_miss: str
    initial_prompt: str
    lookup_done: bool


def _row_of(new: NewJob, request: Submit) -> JobColumns:
    spec = new.spec
    pool = pool_of(spec)
    return {
        "id": new.job,
        "name": spec.name or "",
        "owner": request.by,
        "state": JobState.HELD if request.hold else JobState.QUEUED,
        "spec": spec.to_json(),
        "pool": pool.key,
        "model": pool.model,
        "submitted_at": spec.submitted_at or request.at,
        "deadline_at": spec.deadline_at,
        "priority": spec.priority,
        "min_gpus": spec.min_gpus,
        "max_gpus": spec.max_gpus,
        "on_miss": spec.on_miss,
        "initial_prompt": str(spec.initial_prompt),
        "lookup_done": not spec.initial_prompt.is_looked_up,
    }


def _job(tx: Tx, name: str | None) -> Job:
    job = None if name is None else tx.session.get(Job, name)
    if job is None:
        raise NotFound(f"no job {name!r}; `prompttuner status --all` lists them")
    return job


def _active_job(tx: Tx, request: JobRequest) -> Job:
    job = _job(tx, request.job)
    if job.state in JOB_ENDED:
        raise StateError(f"job {job.id} has ended ({job.state}); there is nothing to change any more")
    return job


def _update(tx: Tx, request: Update) -> str:
    job = _active_job(tx, request)
    said: dict[str, float | int | None] = {}
    if request.sets_deadline:
        said["deadline_at"] = job.deadline_at = request.deadline_at
        job.best_effort = False
    if request.priority is not None:
        said["priority"] = job.priority = request.priority
    if not said:
        raise SpecError("nothing to update: give a deadline or a priority")
    tx.event("update", job=job, cause=f"changed by {request.who}", data=dict(said))
    return f"updated {' and '.join(name.removesuffix('_at') for name in said)} of {job.id}"


def _hold(tx: Tx, request: Hold) -> str:
    job = _active_job(tx, request)
    if job.state == JobState.HELD:
        return f"{job.id} is held already"
    cause = f"held by {request.who}"
    if job.members:
        tx.new_members(job, [], cause)
    tx.job_state(job, JobState.HELD, cause)
    return f"held {job.id}; `prompttuner release {job.id}` lets it go on"


def _release(tx: Tx, request: Release) -> str:
    job = _active_job(tx, request)
    if job.state != JobState.HELD:
        raise StateError(f"job {job.id} is not held (it is {job.state})")
    tx.job_state(job, JobState.QUEUED, f"released by {request.who}")
    return f"released {job.id}"


def _scale(tx: Tx, request: Scale) -> str:
    job = _active_job(tx, request)
    wanted = request.members
    if wanted is None:
        job.scale_to = None
        tx.event("scale", job=job, cause=f"left to the policy by {request.who}")
        return f"the policy decides about {job.id} again"
    batch = ResolvedSpec.expect(job.spec).batch_size
    if not 1 <= wanted <= batch:
        raise StateError(f"{Counted(wanted, 'member')} for {job.id}: between 1 and its batch size {batch} make sense")
    job.scale_to = wanted
    tx.event("scale", job=job, cause=f"scaled to {wanted} by {request.who}")
    return f"{job.id} is to have {Counted(wanted, 'member')}"


def _drain(tx: Tx, request: Drain) -> str:
    count = 0
    for allocation in _named_allocations(tx, request):
        if not allocation.drain:
            allocation.drain = True
            count += 1
            tx.event("drain", allocation=allocation, cause=f"drained by {request.who}")
            if allocation.state == AllocationState.WARM:
                tx.allocation_state(allocation, AllocationState.DRAINING, "it takes no new job")
    return f"draining {Counted(count, 'allocation')}, as soon as no job is there any more"


def _release_agent(tx: Tx, request: ReleaseAgent) -> str:
    """End allocations now; their jobs go on elsewhere from their last checkpoint."""
    found = _named_allocations(tx, request)
    for allocation in found:
        allocation.drain = True
        tx.event("release", allocation=allocation, cause=f"released by {request.who}")
        job = None if allocation.job_id is None else tx.session.get(Job, allocation.job_id)
        if job is not None:
            staying = [m for m in job.members if m != allocation.uuid]
            tx.new_members(job, staying, f"its GPU released by {request.who}")
        elif allocation.state in {AllocationState.WARM, AllocationState.SWITCHING}:
            tx.allocation_state(allocation, AllocationState.DRAINING, "given back")
    return f"giving back {Counted(len(found), 'allocation')}"


def _named_allocations(tx: Tx, request: AllocationRequest) -> list[Allocation]:
    there = live.allocations_not_ended(tx.session)
    name = request.allocation
    if name == "all":
        return there
    if request.idle:
        return [a for a in there if a.job_id is None]
    found = [a for a in there if name and (a.uuid.startswith(name) or a.native_id == name)]
    if len(found) != 1:
        many = "no live allocation" if not found else "several allocations"
        raise NotFound(f"{many} {name!r}; `prompttuner pool` lists them")
    return found


def _purge(tx: Tx, request: Purge) -> str:
    names = request.jobs
    found = live.jobs_named(tx.session, names) if names else [_job(tx, request.job)]
    for job in found:
        if job.state not in JOB_ENDED:
            raise StateError(f"job {job.id} has not ended ({job.state}); cancel it first")
    for job in found:
        job.purged = True
    tx.session.flush()
    cause = f"purged by {request.who}"
    events.append(tx.session, [NewEvent("purge", cause, job.id) for job in found], tx.now)
    whose = Counted(len(found), "job") if names else found[0].id
    return f"the folder of {whose} will be removed"


def _resume_pool(tx: Tx, request: ResumePool) -> str:
    """Try at once what paused after failed starts; count anew."""
    name = request.pool
    chosen = sorted(key for key in trials.load(tx.session) if not name or (key and key.startswith(name)))
    if name and not chosen:
        raise NotFound(f"no pool {name!r} is on trial; `prompttuner pool` lists those that are")
    trials.forget(tx.session, set(chosen))
    nodes = 0 if name else trials.readmit(tx.session)
    for key in chosen:
        tx.event("pool.resumed", cause=f"{key or 'every pool'}, by {request.who}")
    if not chosen and not nodes:
        return "nothing was paused"
    return f"{Counted(len(chosen), 'pause')} and {Counted(nodes, 'exclusion of a node', 'exclusions of nodes')} ended"
