"""Reading the state with the settings of this command line; see :mod:`prompttuner.client.reading`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from prompttuner.cli.frame import context
from prompttuner.client import reading
from prompttuner.client.reading import find_job, pending_jobs, silence

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from prompttuner.db.store.store import Store
    from prompttuner.db.tables.models import Job

__all__ = ["controller_text", "find_job", "job_in", "looking", "one_job", "open_store", "pending_jobs", "silence"]


def open_store() -> Store | None:
    """See :func:`prompttuner.client.reading.open_store`."""
    return reading.open_store(context.settings())


def looking() -> AbstractContextManager[Session | None]:
    """See :func:`prompttuner.client.reading.looking`."""
    return reading.looking(context.settings())


def one_job(word: str) -> AbstractContextManager[tuple[Session, Job]]:
    """See :func:`prompttuner.client.reading.one_job`."""
    return reading.one_job(context.settings(), word)


def job_in(session: Session | None, word: str) -> Job:
    """See :func:`prompttuner.client.reading.job_in`."""
    return reading.job_in(context.settings(), session, word)


def controller_text() -> str:
    """See :func:`prompttuner.client.reading.controller_text`."""
    return reading.controller_text(context.settings())
