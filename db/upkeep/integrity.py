"""``prompttuner db check``: is the database whole, at our schema, and does what is in it make sense?"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, text
from sqlalchemy.orm import Session

from prompttuner.db.queries import allocations, jobs
from prompttuner.db.store import schema
from prompttuner.db.store.place import NETWORK_FILE_SYSTEMS, file_system_of
from prompttuner.db.store.store import Store
from prompttuner.db.tables.models import Allocation, Base, Job, Lease, OwnershipRow
from prompttuner.states import AllocationState, JobState
from prompttuner.words import Counted

__all__ = ["Finding", "check"]

SHOWN = 5
"""Rows named in one finding."""

_TRIGGERS = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'events'",
    "postgresql": "SELECT tgname FROM pg_trigger WHERE tgrelid = 'events'::regclass AND NOT tgisinternal "
    "AND tgenabled <> 'D'",
}
_NEEDED_TRIGGERS = {"sqlite": {"events_no_update", "events_no_delete"}, "postgresql": {"events_append_only"}}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    serious: bool
    """False: works, but is advised against."""
    text: str


def check(store: Store) -> list[Finding]:
    """All that is wrong with a database that could be opened; empty if nothing is."""
    with store.read() as session:
        connection = session.connection()
        found = [*_damage(connection), *_schema(connection)]
        if not any(finding.serious for finding in found):
            found += [*_states(session), *_references(session), *_ownership(session)]
    return [*found, *_file(store)]


def _damage(connection: Connection) -> Iterator[Finding]:
    if connection.dialect.name != "sqlite":
        return  # the server checks its pages itself
    for row in connection.execute(text("PRAGMA integrity_check(5)")):
        if row[0] != "ok":
            yield Finding(True, f"the file is damaged: {row[0]}")
    broken = connection.execute(text("PRAGMA foreign_key_check")).all()
    if broken:
        tables = ", ".join(sorted({row[0] for row in broken}))
        yield Finding(True, f"references to rows that do not exist: {len(broken)} (in {tables})")


def _schema(connection: Connection) -> Iterator[Finding]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    found = schema.revision(connection)
    if found != schema.HEAD:
        yield Finding(True, f"the schema is at revision {found}, not {schema.HEAD}: run `prompttuner db upgrade`")
        return
    context = MigrationContext.configure(connection, opts={"compare_type": True, "include_object": _ours})
    for difference in compare_metadata(context, Base.metadata):
        yield Finding(True, f"the tables differ from what this version expects: {_describe(difference)}")
    names = {row[0] for row in connection.execute(text(_TRIGGERS[connection.dialect.name]))}
    for name in sorted(_NEEDED_TRIGGERS[connection.dialect.name] - names):
        yield Finding(True, f"trigger {name} is missing: events could be changed")


def _ours(_thing: object, name: str | None, kind: str, reflected: bool, _compare: object) -> bool:
    """A Postgres schema may hold tables of others; those are no difference."""
    return not (kind == "table" and reflected and name not in Base.metadata.tables)


def _describe(difference: object) -> str:
    if isinstance(difference, list):
        return "; ".join(_describe(item) for item in difference)
    if isinstance(difference, tuple):
        return " ".join(str(getattr(part, "name", part)) for part in difference if part is not None)
    return str(difference)


def _states(session: Session) -> Iterator[Finding]:
    known_jobs = {state.value for state in JobState}
    for state, number in jobs.count_by_state(session).items():
        if state not in known_jobs:
            yield Finding(True, f"{Counted(number, 'job')} in the unknown state {state!r}")
    known = {state.value for state in AllocationState}
    for state, number in allocations.count_by_state(session).items():
        if state not in known:
            yield Finding(True, f"{Counted(number, 'allocation')} in the unknown state {state!r}")
    unfinished = Job.state.not_in(jobs.ACTIVE_STATES) & Job.finished_at.is_(None)
    yield from _name(session, Job.id, unfinished, "jobs have ended without a time")
    early = Job.state.in_(jobs.ACTIVE_STATES) & Job.finished_at.is_not(None)
    yield from _name(session, Job.id, early, "jobs are active but have an end time")
    ended = Allocation.state.not_in(allocations.LIVE_STATES)
    yield from _name(
        session, Allocation.uuid, ended & Allocation.ended_at.is_(None), "allocations have ended without a time"
    )
    yield from _name(session, Allocation.uuid, ended & Allocation.job_id.is_not(None), "ended allocations hold a job")


def _references(session: Session) -> Iterator[Finding]:
    live = {row.uuid for row in allocations.load_live(session)}
    for job in jobs.load_active(session):
        if job.state == JobState.RUNNING and not job.members:
            yield Finding(True, f"job {job.id} runs without members")
        if job.state != JobState.RUNNING and job.members:
            yield Finding(True, f"job {job.id} is {job.state} but has members")
        gone = [member for member in job.members if member not in live]
        if gone:
            yield Finding(True, f"job {job.id} has members that are no live allocations: {', '.join(gone[:SHOWN])}")
    stale = select(Job.id).where(Job.state.not_in(jobs.ACTIVE_STATES))
    yield from _name(session, Lease.id, Lease.ended_at.is_(None) & Lease.job_id.in_(stale), "leases outlived their job")


def _ownership(session: Session) -> Iterator[Finding]:
    rows = session.scalar(select(func.count()).select_from(OwnershipRow)) or 0
    if rows != 1:
        yield Finding(True, f"the ownership table has {rows} rows instead of 1")


def _name(session: Session, key: object, condition: object, what: str) -> Iterator[Finding]:
    found = session.scalars(select(key).where(condition).limit(SHOWN + 1)).all()  # type: ignore[call-overload]
    if found:
        more = ", ..." if len(found) > SHOWN else ""
        yield Finding(True, f"{what}: {', '.join(str(item) for item in found[:SHOWN])}{more}")


def _file(store: Store) -> Iterator[Finding]:
    path = store.place.path
    if path is None:
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield Finding(False, f"{path} can be read by others (mode {mode:o}): chmod 600 {path}")
    kind = file_system_of(path)
    if kind in NETWORK_FILE_SYSTEMS:
        yield Finding(False, f"{path} lies on a network file system ({kind}); consider Postgres")
