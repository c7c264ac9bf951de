"""Reading the state: the database opened read-only, finding a job, and requests nobody has taken yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prompttuner.cli import context
from prompttuner.config.mask import mask_text
from prompttuner.errors import NotFound
from prompttuner.files import read_json

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from prompttuner.config import Settings
    from prompttuner.db.models import Job
    from prompttuner.db.store import Store

__all__ = ["controller_text", "find_job", "one_job", "open_store", "pending_submits"]

READ_RETRY_S = 5.0
"""A command that only looks does not wait long for a database that is away."""


def open_store() -> Store | None:
    """The database, read-only; None when there is none yet, which is no error for a command that only looks.

    Raises:
        DatabaseError: it is there and cannot be used.
    """
    from prompttuner.db.failures import NoDatabase
    from prompttuner.db.store import Store

    try:
        return Store.open(context.settings().database_url, read_only=True, retry_s=READ_RETRY_S)
    except NoDatabase:
        return None


@contextmanager
def one_job(word: str) -> Iterator[tuple[Session, Job]]:
    """A read session and the job that ``word`` means.

    Raises:
        NotFound: no such job; one that is still in the inbox is named as such.
    """
    store = open_store()
    if store is None:
        _refuse_requested(word)
        url = mask_text(context.settings().database_url)
        raise NotFound(f"there is no job {word!r}: nothing was ever submitted (database: {url})")
    with store, store.read() as session:
        try:
            job = find_job(session, word)
        except NotFound:
            _refuse_requested(word)
            raise
        yield session, job


def find_job(session: Session, word: str) -> Job:
    """The job that ``word`` means: its id, the beginning of one, or a name that only one job has.

    Raises:
        NotFound: no job, or several; the message lists those.
    """
    from prompttuner.db import jobs

    return jobs.get(session, jobs.resolve(session, word))


def pending_submits(settings: Settings) -> list[dict[str, Any]]:
    """Submit requests that lie in the inbox: jobs the database does not know yet, oldest first."""
    found = []
    for path in (settings.spool_dir / "inbox").glob("*.json"):
        request = read_json(path)
        if isinstance(request, dict) and request.get("kind") == "submit" and isinstance(request.get("job"), str):
            found.append(request)
    return sorted(found, key=lambda request: float(request.get("at", 0)))


def _refuse_requested(word: str) -> None:
    for request in pending_submits(context.settings()):
        if word in {request["job"], request.get("spec", {}).get("name")}:
            raise NotFound(f"job {request['job']} is still in the inbox: run `prompttuner tick`, or start a controller")


def controller_text() -> str:
    """In one sentence: who is the controller now."""
    store = open_store()
    if store is None:
        return "There is no state yet: the command would create it and be the controller for one tick."
    with store:
        owner = store.owner()
    if owner.owner is None:
        return (
            "No controller runs: the command would make one tick itself (`prompttuner run` or cron keeps things going)."
        )
    return f"The controller is `{owner.command}` on {owner.host} (process {owner.pid}): it would take the request."
