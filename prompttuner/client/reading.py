"""Reading the state: the database opened read-only, finding a job, requests nobody has taken yet, the controller."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prompttuner.config.mask import mask_text
from prompttuner.errors import NotFound
from prompttuner.files import read_json
from prompttuner.protocol.requests import NewJob, Submit, read_request
from prompttuner.spec.when import format_duration

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from prompttuner.config import Settings
    from prompttuner.db.store.ownership import OwnerRow
    from prompttuner.db.store.store import Store
    from prompttuner.db.tables.models import Job

__all__ = ["controller_text", "find_job", "job_in", "looking", "one_job", "open_store", "pending_jobs", "silence"]

READ_RETRY_S = 5.0
"""A command that only looks does not wait long for a database that is away."""


def open_store(settings: Settings) -> Store | None:
    """The database, read-only; None when there is none yet, which is no error for a command that only looks.

    Raises:
        DatabaseError: it is there and cannot be used.
    """
    from prompttuner.db.store.failures import NoDatabase
    from prompttuner.db.store.store import Store

    try:
        return Store.open(settings.database_url, read_only=True, retry_s=READ_RETRY_S)
    except NoDatabase:
        return None


@contextmanager
def looking(settings: Settings) -> Iterator[Session | None]:
    """A read session for all that one command looks at; None while there is no database yet."""
    store = open_store(settings)
    if store is None:
        yield None
        return
    with store, store.read() as session:
        yield session


@contextmanager
def one_job(settings: Settings, word: str) -> Iterator[tuple[Session, Job]]:
    """A read session and the job that ``word`` means.

    Raises:
        NotFound: no such job; one that is still in the inbox is named as such.
    """
    with looking(settings) as session:
        job = job_in(settings, session, word)
        assert session is not None
        yield session, job


def job_in(settings: Settings, session: Session | None, word: str) -> Job:
    """The job that ``word`` means, in a session of ``looking``.

    Raises:
        NotFound: no such job; one that is still in the inbox is named as such.
    """
    if session is None:
        _refuse_requested(settings, word)
        url = mask_text(settings.database_url)
        raise NotFound(f"there is no job {word!r}: nothing was ever submitted (database: {url})")
    try:
        return find_job(session, word)
    except NotFound:
        _refuse_requested(settings, word)
        raise


def find_job(session: Session, word: str) -> Job:
    """The job that ``word`` means: its id, the beginning of one, or a name that only one job has.

    Raises:
        NotFound: no job, or several; the message lists those.
    """
    from prompttuner.db.queries import jobs

    return jobs.get(session, jobs.resolve(session, word))


def pending_jobs(settings: Settings) -> list[NewJob]:
    """Jobs that lie in the inbox, and which the database does not know yet, oldest first."""
    found = []
    for path in (settings.spool_dir / "inbox").glob("*.json"):
        request = read_request(read_json(path))
        if isinstance(request, Submit):
            found.append(request)
    return [new for request in sorted(found, key=lambda request: request.at) for new in request.jobs]


def _refuse_requested(settings: Settings, word: str) -> None:
    for new in pending_jobs(settings):
        if word in {new.job, new.spec.name}:
            raise NotFound(f"job {new.job} is still in the inbox: run `prompttuner tick`, or start a controller")


def controller_text(settings: Settings) -> str:
    """In one sentence: who is the controller now."""
    store = open_store(settings)
    if store is None:
        return "There is no state yet: the command would create it and be the controller for one tick."
    with store:
        owner = store.owner()
    if (silent := silence(owner)) is not None:
        return f"{silent}: the command would try to be the controller for one tick."
    if owner.owner is None:
        return (
            "No controller runs: the command would make one tick itself (`prompttuner run` or cron keeps things going)."
        )
    return f"The controller is `{owner.command}` on {owner.host} (process {owner.pid}): it would take the request."


def silence(owner: OwnerRow) -> str | None:
    """Why the owner of the state is probably gone, in words; None where it is alive, or nobody owns the state."""
    from prompttuner.db.store.ownership import OwnerInfo, process_is_dead

    if owner.owner is None:
        return None
    named = f"the controller `{owner.command}` on {owner.host} (process {owner.pid})"
    here = OwnerInfo.of_this_process().machine
    if owner.machine and owner.machine == here and process_is_dead(owner.pid, owner.pid_start):
        return f"{named} is dead"
    quiet_s = time.time() - (owner.renewed_at or 0.0)
    return f"{named} has been silent for {format_duration(quiet_s)}" if quiet_s > 2 * owner.ttl_s else None
