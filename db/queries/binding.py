"""Which spool a database goes with: its jobs' folders and its agents are there, and nowhere else."""

from __future__ import annotations

import json

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from prompttuner.db.queries.allocations import LIVE_STATES
from prompttuner.db.queries.bulk import table_of, upsert_rows
from prompttuner.db.queries.jobs import ACTIVE_STATES
from prompttuner.db.tables.models import Allocation, Job, Meta

__all__ = ["bind", "bound_to", "is_in_use", "unbind"]

SPOOL = "spool"
"""Key in ``meta``."""


def bound_to(session: Session) -> tuple[str, str] | None:
    """(identity, path and host) of the spool; None as long as there was none."""
    value = session.scalar(select(Meta.value).where(Meta.key == SPOOL))
    if value is None:
        return None
    identity, place = json.loads(value)
    return str(identity), str(place)


def bind(session: Session, identity: str, place: str) -> None:
    """Remember that this database goes with the spool of this identity, at ``place``."""
    upsert_rows(session, table_of(Meta), [{"key": SPOOL, "value": json.dumps([identity, place])}])


def unbind(session: Session) -> None:
    """The next controller's spool will be the one."""
    session.execute(delete(Meta).where(Meta.key == SPOOL))


def is_in_use(session: Session) -> bool:
    """True while jobs or allocations have not ended."""
    job = exists().where(Job.state.in_(ACTIVE_STATES))
    allocation = exists().where(Allocation.state.in_(LIVE_STATES))
    return bool(session.scalar(select(job | allocation)))
