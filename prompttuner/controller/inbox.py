"""Apply the requests that commands left in the inbox: each once, however often it is read."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompttuner.controller.act.limits import check_within_cap
from prompttuner.controller.act.projection import prepare_job
from prompttuner.controller.act.transaction import Tx
from prompttuner.controller.plan.plannable import check_plannable, point_in_time, priority_of
from prompttuner.controller.plan.pools import pool_of
from prompttuner.controller.resources import Resources
from prompttuner.db.queries import events, live
from prompttuner.db.queries import jobs as job_rows
from prompttuner.db.queries import requests as request_rows
from prompttuner.db.queries.events import NewEvent
from prompttuner.db.tables.models import Allocation, Job
from prompttuner.errors import NotFound, SpecError, SpoolError, StateError
from prompttuner.files import write_json
from prompttuner.slurm.spool import Spool, read_own_json
from prompttuner.states import JOB_ENDED, AllocationState, JobState
from prompttuner.words import Counted

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Inbox", "pending_requests"]

Handler = Callable[[Tx, Mapping[str, Any]], str]

PLAIN_ID = re.compile(r"[A-Za-z0-9]{2,64}")
"""A job's id; it names a folder."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""A request's id; it names the file of its reply."""


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
                request = _read(path)
            except SpoolError as error:
                _set_aside(res, path, str(error))
                continue
            except OSError as error:  # a network file system that cannot show it now will do so later
                res.warn(f"request {path} cannot be read now: {error.strerror or error}")
                unread.add(path)
                continue
            ok, message = _apply_once(res, request)
            write_json(res.spool.reply(request["id"]), {"ok": ok, "message": message, "at": res.now()})
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            count += 1
        self.unread = frozenset(unread)
        return count


def _read(path: Path) -> dict[str, Any]:
    """A request.

    Raises:
        SpoolError: it is none, now or later, or another user's.
        OSError: it cannot be read now.
    """
    request = read_own_json(path)
    if request is None:
        path.read_bytes()  # whether it was the file system that kept it from us
        request = read_own_json(path)
    if not isinstance(request, dict) or PLAIN_NAME.fullmatch(str(request.get("id", ""))) is None:
        raise SpoolError("it is not a request")
    return request


def _set_aside(res: Resources, path: Path, why: str) -> None:
    """A file that no tick can take is kept for people, under a name that no tick looks at again."""
    res.warn(f"{path.name} in the inbox is set aside as {path.name}.broken: {why}")
    with contextlib.suppress(OSError):
        path.rename(path.with_name(path.name + ".broken"))


def _apply_once(res: Resources, request: Mapping[str, Any]) -> tuple[bool, str]:
    name = str(request["id"])
    known = res.state.query(lambda session: request_rows.applied(session, [name])).get(name)
    if known is not None:
        return bool(known.ok), str(known.message)
    try:
        if request.get("kind") == "submit":
            _prepare_submit(res, request)
        elif request.get("kind") == "scale":
            check_within_cap(res.settings, int(request.get("members") or 1))

        def work(session: Session) -> str:
            tx = Tx(session, res.now())
            message = _HANDLERS[str(request["kind"])](tx, request)
            _record(session, request, True, message, tx.now)
            return message

        if request.get("kind") not in _HANDLERS:
            raise SpecError(f"unknown request kind {request.get('kind')!r}")
        return True, res.state.write(work)
    except (SpecError, NotFound, StateError) as error:
        text = str(error)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        # Refused: left in the inbox, it would stop every tick to come.
        text = f"the {request.get('kind')} request cannot be understood: {type(error).__name__}: {error}"
    res.state.write(lambda session: _record(session, request, False, text, res.now()))
    return False, text


def _record(session: Session, request: Mapping[str, Any], ok: bool, message: str, at: float) -> None:
    request_rows.record(
        session,
        str(request["id"]),
        str(request.get("kind")),
        requested_at=_time(request.get("at"), at),
        by=str(request.get("by", "")),
        at=at,
        ok=ok,
        message=message,
    )


def _time(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and value else default


def _prepare_submit(res: Resources, request: Mapping[str, Any]) -> None:
    job_id, spec = str(request.get("job", "")), request.get("spec")
    if PLAIN_ID.fullmatch(job_id) is None or not isinstance(spec, dict):
        raise SpecError("a submit request needs a job id and a resolved spec")
    check_plannable(spec)
    check_within_cap(res.settings, int(spec.get("min_gpus") or 1))
    if res.state.query(lambda session: session.get(Job, job_id)) is None:  # else its spec is frozen
        prepare_job(res.spool, job_id, spec)


def _submit(tx: Tx, request: Mapping[str, Any]) -> str:
    job_id, spec = str(request["job"]), dict(request["spec"])
    if tx.session.get(Job, job_id) is not None:
        return f"{job_id} was submitted before"
    pool = pool_of(spec)
    held = bool(request.get("hold"))
    owner = str(request.get("by", ""))
    row: dict[str, Any] = {
        "id": job_id,
        "name": str(spec.get("name") or ""),
        "owner": owner,
        "state": JobState.HELD if held else JobState.QUEUED,
        "spec": spec,
        "pool": pool.key,
        "model": pool.model,
        "submitted_at": point_in_time(spec.get("submitted_at") or request["at"]),
        "deadline_at": None if spec.get("deadline_at") is None else point_in_time(spec["deadline_at"]),
        "priority": priority_of(spec.get("priority") or 0),
        "min_gpus": int(spec.get("min_gpus") or 1),
        "max_gpus": int(spec.get("max_gpus") or 1),
        "on_miss": str(spec.get("on_miss") or "continue"),
        "initial_prompt": str(spec.get("initial_prompt") or "auto"),
        "lookup_done": spec.get("initial_prompt") != "auto",
    }
    job_rows.add(tx.session, [row], tx.now, f"submitted by {owner}")
    return f"submitted {job_id}"


def _job(tx: Tx, request: Mapping[str, Any]) -> Job:
    job = tx.session.get(Job, str(request.get("job", "")))
    if job is None:
        raise NotFound(f"no job {request.get('job')!r}; `prompttuner status --all` lists them")
    return job


def _active_job(tx: Tx, request: Mapping[str, Any]) -> Job:
    job = _job(tx, request)
    if job.state in JOB_ENDED:
        raise StateError(f"job {job.id} has ended ({job.state}); there is nothing to change any more")
    return job


def _cause(request: Mapping[str, Any], word: str) -> str:
    return f"{word} by {request.get('by', 'the user')}"


def _cancel(tx: Tx, request: Mapping[str, Any]) -> str:
    job = _active_job(tx, request)
    tx.end_job(job, JobState.CANCELLED, _cause(request, "cancelled"))
    return f"cancelled {job.id}"


def _update(tx: Tx, request: Mapping[str, Any]) -> str:
    job = _active_job(tx, request)
    said = []
    if "deadline_at" in request:
        job.deadline_at = None if request["deadline_at"] is None else point_in_time(request["deadline_at"])
        job.best_effort = False
        said.append("deadline")
    if "priority" in request:
        job.priority = priority_of(request["priority"])
        said.append("priority")
    if not said:
        raise SpecError("nothing to update: give a deadline or a priority")
    tx.event(
        "update",
        job=job,
        cause=_cause(request, "changed"),
        data={k: request.get(k) for k in request if k in {"deadline_at", "priority"}},
    )
    return f"updated {' and '.join(said)} of {job.id}"


def _hold(tx: Tx, request: Mapping[str, Any]) -> str:
    job = _active_job(tx, request)
    if job.state == JobState.HELD:
        return f"{job.id} is held already"
    if job.members:
        tx.new_members(job, [], _cause(request, "held"))
    tx.job_state(job, JobState.HELD, _cause(request, "held"))
    return f"held {job.id}; `prompttuner release {job.id}` lets it go on"


def _release(tx: Tx, request: Mapping[str, Any]) -> str:
    job = _active_job(tx, request)
    if job.state != JobState.HELD:
        raise StateError(f"job {job.id} is not held (it is {job.state})")
    tx.job_state(job, JobState.QUEUED, _cause(request, "released"))
    return f"released {job.id}"


def _scale(tx: Tx, request: Mapping[str, Any]) -> str:
    job = _active_job(tx, request)
    members = request.get("members")
    if members is None:
        job.scale_to = None
        tx.event("scale", job=job, cause=_cause(request, "left to the policy"))
        return f"the policy decides about {job.id} again"
    wanted, batch = int(members), int(job.spec["batch_size"])
    if not 1 <= wanted <= batch:
        raise StateError(f"{Counted(wanted, 'member')} for {job.id}: between 1 and its batch size {batch} make sense")
    job.scale_to = wanted
    tx.event("scale", job=job, cause=_cause(request, f"scaled to {wanted}"))
    return f"{job.id} is to have {Counted(wanted, 'member')}"


def _drain(tx: Tx, request: Mapping[str, Any]) -> str:
    count = 0
    for allocation in _named_allocations(tx, request):
        if not allocation.drain:
            allocation.drain = True
            count += 1
            tx.event("drain", allocation=allocation, cause=_cause(request, "drained"))
            if allocation.state == AllocationState.WARM:
                tx.allocation_state(allocation, AllocationState.DRAINING, "it takes no new job")
    return f"draining {Counted(count, 'allocation')}, as soon as no job is there any more"


def _release_agent(tx: Tx, request: Mapping[str, Any]) -> str:
    """End allocations now; their jobs go on elsewhere from their last checkpoint."""
    found = _named_allocations(tx, request)
    for allocation in found:
        allocation.drain = True
        tx.event("release", allocation=allocation, cause=_cause(request, "released"))
        job = None if allocation.job_id is None else tx.session.get(Job, allocation.job_id)
        if job is not None:
            tx.new_members(job, [m for m in job.members if m != allocation.uuid], _cause(request, "its GPU released"))
        elif allocation.state in {AllocationState.WARM, AllocationState.SWITCHING}:
            tx.allocation_state(allocation, AllocationState.DRAINING, "given back")
    return f"giving back {Counted(len(found), 'allocation')}"


def _named_allocations(tx: Tx, request: Mapping[str, Any]) -> list[Allocation]:
    there = live.allocations_not_ended(tx.session)
    name = str(request.get("allocation", ""))
    if name == "all":
        return there
    if request.get("idle"):
        return [a for a in there if a.job_id is None]
    found = [a for a in there if name and (a.uuid.startswith(name) or a.native_id == name)]
    if len(found) != 1:
        many = "no live allocation" if not found else "several allocations"
        raise NotFound(f"{many} {name!r}; `prompttuner pool` lists them")
    return found


def _purge(tx: Tx, request: Mapping[str, Any]) -> str:
    """One job, or many at once (``jobs``), of which those that are gone already are no mistake."""
    names = [str(name) for name in request.get("jobs") or ()]
    found = live.jobs_named(tx.session, names) if names else [_job(tx, request)]
    for job in found:
        if job.state not in JOB_ENDED:
            raise StateError(f"job {job.id} has not ended ({job.state}); cancel it first")
    for job in found:
        job.purged = True
    tx.session.flush()
    events.append(tx.session, [NewEvent("purge", _cause(request, "purged"), job.id) for job in found], tx.now)
    whose = Counted(len(found), "job") if names else found[0].id
    return f"the folder of {whose} will be removed"


_HANDLERS: dict[str, Handler] = {
    "submit": _submit,
    "cancel": _cancel,
    "update": _update,
    "hold": _hold,
    "release": _release,
    "scale": _scale,
    "drain": _drain,
    "release_agent": _release_agent,
    "purge": _purge,
}
