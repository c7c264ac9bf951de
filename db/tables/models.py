"""The tables. Times are Unix seconds of the controller's clock; a missing time is NULL."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import ForeignKey, Index, MetaData, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, validates

from prompttuner.db.tables.types import CleanText, Number, Real, json_column
from prompttuner.errors import StateError

__all__ = [
    "Allocation",
    "BankEntry",
    "Base",
    "Event",
    "Job",
    "Lease",
    "Meta",
    "NodeFault",
    "OwnershipRow",
    "PoolTrial",
    "Request",
    "SpeedProfile",
    "StartupProfile",
]

JsonList = list[Any]
JsonDict = dict[str, Any]


def _only_by_change(row: DeclarativeBase, _name: str, value: str) -> str:
    raise StateError(f"the state of {type(row).__name__} rows is not assigned ({value}): use change() of its module")


def _where(sqlite: str, postgres: str) -> dict[str, Any]:
    """Conditions as SQLAlchemy writes them, or the planner does not see that the index fits."""
    return {"sqlite_where": text(sqlite), "postgresql_where": text(postgres)}


class Base(DeclarativeBase):
    """The declarative base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own name and form
        str: CleanText(),
        float: Real(),
        int: Number(),
        JsonList: json_column(),
        JsonDict: json_column(),
    }


class Job(Base):
    """One prompt-tuning job, from submission on."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "state", "submitted_at"),
        Index(None, "finished_at"),
        Index(None, "pool", "submitted_at"),
        # Small: what a tick looks for among all jobs, and hardly ever finds.
        Index("ix_jobs_behind", "id", **_where("plan_generation < generation", "plan_generation < generation")),
        Index("ix_jobs_purged", "id", **_where("purged = 1", "purged")),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(default="")
    owner: Mapped[str] = mapped_column(default="")
    state: Mapped[str] = mapped_column(Text)
    """A ``states.JobState``; changed by ``jobs.change`` alone."""
    spec: Mapped[JsonDict]
    pool: Mapped[str]
    model: Mapped[str]
    submitted_at: Mapped[float]
    deadline_at: Mapped[float | None]
    """NULL: best effort from the start."""
    priority: Mapped[int] = mapped_column(default=0)
    min_gpus: Mapped[int] = mapped_column(default=1)
    max_gpus: Mapped[int] = mapped_column(default=1)
    best_effort: Mapped[bool] = mapped_column(default=False)
    """Demoted: its deadline no longer counts."""
    on_miss: Mapped[str] = mapped_column(default="continue")
    scale_to: Mapped[int | None]
    """Members the user asked for by hand; NULL leaves it to the policy."""
    generation: Mapped[int] = mapped_column(default=0)
    plan_generation: Mapped[int] = mapped_column(default=0)
    """The generation whose plan was last written to the spool; behind ``generation`` until then."""
    members: Mapped[JsonList] = mapped_column(default=list)
    """Allocation uuids; the index is the rank."""
    lookup_done: Mapped[bool] = mapped_column(default=False)
    lookup_budget_s: Mapped[float | None]
    """Seconds granted for a lookup; 0: it would not have paid; NULL: not decided."""
    lookup: Mapped[JsonDict | None]
    """What the worker reports of its lookup."""
    initial_prompt: Mapped[str] = mapped_column(default="")
    step: Mapped[int] = mapped_column(default=0)
    train_loss: Mapped[float | None]
    """Mean loss of the last training step that was told of."""
    eval_loss: Mapped[float | None]
    """Loss of the result on the evaluation data, once there is one."""
    metric: Mapped[float | None]
    best: Mapped[float | None]
    evaluations: Mapped[JsonList | None]
    """The latest evaluations, ``[[step, metric], ...]``, for predictions."""
    ita: Mapped[int | None]
    """Iterations to the target; NULL until (unless) it is reached."""
    iters_mid: Mapped[float | None]
    iters_hi: Mapped[float | None]
    iters_per_s: Mapped[float | None]
    first_step_at: Mapped[float | None]
    started_at: Mapped[float | None]
    state_since: Mapped[float]
    finished_at: Mapped[float | None]
    outcome: Mapped[str | None]
    error: Mapped[str | None]
    note: Mapped[str] = mapped_column(default="")
    """The latest explanation: why it waits, why it has this many GPUs."""
    crash_count: Mapped[int] = mapped_column(default=0)
    gpu_seconds: Mapped[float] = mapped_column(default=0.0)
    purged: Mapped[bool] = mapped_column(default=False)
    """Its folder is, or is to be, removed."""
    history: Mapped[JsonList] = mapped_column(default=list)
    """Workers over time, ``[[time, members], ...]``, bounded by ``jobs.HISTORY_LIMIT``."""
    updated_at: Mapped[float] = mapped_column(onupdate=time.time)

    _guard_state = validates("state")(_only_by_change)


class Allocation(Base):
    """One placeholder that holds, or will hold, GPUs for us."""

    __tablename__ = "allocations"
    __table_args__ = (Index(None, "state"), Index(None, "job_id"), Index(None, "ended_at"))

    uuid: Mapped[str] = mapped_column(Text, primary_key=True)
    state: Mapped[str] = mapped_column(Text)
    """A ``states.AllocationState``; changed by ``allocations.change`` alone."""
    pool: Mapped[str]
    model: Mapped[str]
    place: Mapped[JsonDict | None]
    """GPU type, set-up and data type of its pool: what is fixed for its life."""
    native_id: Mapped[str | None]
    native_state: Mapped[str] = mapped_column(default="")
    reason: Mapped[str] = mapped_column(default="", server_default="")
    """Why the resource manager lets it wait, in its own word; empty once it runs."""
    gpus: Mapped[int] = mapped_column(default=1)
    job_id: Mapped[str | None] = mapped_column(Text, ForeignKey("jobs.id", ondelete="SET NULL"))
    reserved_for: Mapped[str | None]
    """Job it is meant for while it starts."""
    created_at: Mapped[float]
    submitted_at: Mapped[float | None]
    started_at: Mapped[float | None]
    warm_at: Mapped[float | None]
    idle_since: Mapped[float | None]
    state_since: Mapped[float]
    ended_at: Mapped[float | None]
    ends_at: Mapped[float | None]
    """End of its walltime."""
    node: Mapped[str | None]
    host: Mapped[str | None]
    address: Mapped[str | None]
    admitted: Mapped[bool] = mapped_column(default=False)
    suspect_since: Mapped[float | None]
    drain: Mapped[bool] = mapped_column(default=False)
    order: Mapped[JsonDict | None]
    """The last order written, with its seq."""
    status: Mapped[JsonDict | None]
    """The last status seen."""
    end_reason: Mapped[str | None]
    end_source: Mapped[str | None]
    """Where ``ended_at`` comes from: a ``slurm.backend.EndSource``; NULL: it is when the controller noticed."""
    end_cause: Mapped[str | None]
    """Of one that ended before it was warm: whose fault that was, a ``slurm.ends.Fault``."""
    end_detail: Mapped[str | None]
    """The same: exit code, and the last lines of its log."""
    updated_at: Mapped[float] = mapped_column(onupdate=time.time)

    _guard_state = validates("state")(_only_by_change)


class PoolTrial(Base):
    """A pool whose allocations end before they are warm: how often, why, and when it is tried again."""

    __tablename__ = "pool_trials"

    pool: Mapped[str] = mapped_column(Text, primary_key=True)
    """Key of the pool; empty: every pool, as the fault is the site's."""
    failures: Mapped[int]
    """In a row, since an allocation was last warm."""
    paused_until: Mapped[float]
    nodes: Mapped[JsonList]
    """Where they happened."""
    cause: Mapped[str]
    """A ``slurm.ends.Fault``."""
    reason: Mapped[str]
    allocation: Mapped[str | None]
    """The last one."""
    settings: Mapped[str]
    """Hash of what an allocation is asked for with: a changed setting is tried at once."""
    updated_at: Mapped[float]


class NodeFault(Base):
    """A node on which something went wrong that was no job's fault; no allocation is asked for there for a while."""

    __tablename__ = "node_faults"

    node: Mapped[str] = mapped_column(Text, primary_key=True)
    faults: Mapped[int]
    excluded_until: Mapped[float]
    reason: Mapped[str]
    updated_at: Mapped[float]


class Lease(Base):
    """This allocation works for this job, in this generation, as this rank."""

    __tablename__ = "leases"
    __table_args__ = (
        Index(None, "job_id", "generation"),
        Index(None, "allocation"),
        Index(None, "ended_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(Text, ForeignKey("jobs.id", ondelete="CASCADE"))
    allocation: Mapped[str] = mapped_column(Text, ForeignKey("allocations.uuid", ondelete="CASCADE"))
    generation: Mapped[int]
    rank: Mapped[int]
    granted_at: Mapped[float]
    ended_at: Mapped[float | None]
    end_reason: Mapped[str | None]
    steps: Mapped[int] = mapped_column(default=0)


class Event(Base):
    """What happened and why. Append-only: triggers refuse updates, and deletions above the retention horizon."""

    __tablename__ = "events"
    __table_args__ = (
        Index(None, "job_id", "seq"),
        Index(None, "allocation", "seq"),
        Index(None, "kind", "seq"),
        Index(None, "at"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    kind: Mapped[str] = mapped_column(Text)
    job_id: Mapped[str | None] = mapped_column(Text)
    allocation: Mapped[str | None] = mapped_column(Text)
    cause: Mapped[str] = mapped_column(default="")
    data: Mapped[JsonDict | None]


class SpeedProfile(Base):
    """Measured iterations a second of a model in a pool, by number of members."""

    __tablename__ = "speed_profiles"

    pool: Mapped[str] = mapped_column(Text, primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    members: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    iters_per_s: Mapped[float]
    samples: Mapped[int]
    origin: Mapped[str]
    updated_at: Mapped[float]


class StartupProfile(Base):
    """Measured seconds of one kind of start (queue, start, warm, resize, switch, lookup) in a pool."""

    __tablename__ = "startup_profiles"

    pool: Mapped[str] = mapped_column(Text, primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    seconds: Mapped[float]
    samples: Mapped[int]
    origin: Mapped[str]
    updated_at: Mapped[float]


class OwnershipRow(Base):
    """The single row (id 1) that says which controller may write."""

    __tablename__ = "ownership"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    generation: Mapped[int]
    """The fencing generation: only grows, one step a taker."""
    owner: Mapped[str | None]
    """Random id of the present owner; NULL when released."""
    host: Mapped[str] = mapped_column(default="")
    machine: Mapped[str] = mapped_column(default="")
    """Boot id and pid namespace: where ``pid`` means something."""
    pid: Mapped[int] = mapped_column(default=0)
    pid_start: Mapped[str] = mapped_column(default="")
    """The process's start time in clock ticks since boot, against reuse of its pid."""
    command: Mapped[str] = mapped_column(default="")
    beat: Mapped[int] = mapped_column(default=0)
    """Grows with every renewal and every write."""
    ttl_s: Mapped[float] = mapped_column(default=0.0)
    acquired_at: Mapped[float | None]
    renewed_at: Mapped[float | None]
    expires_at: Mapped[float | None]
    """By the owner's clock, for people; takers measure by their own."""
    last_write: Mapped[str] = mapped_column(default="")
    """Random id of the last committed write: tells whether a commit with a lost answer was applied."""


class Request(Base):
    """A request from the inbox that has been applied: applying it again answers the same."""

    __tablename__ = "requests"
    __table_args__ = (Index(None, "applied_at"),)

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str]
    at: Mapped[float]
    by: Mapped[str] = mapped_column(default="")
    applied_at: Mapped[float]
    ok: Mapped[bool]
    message: Mapped[str] = mapped_column(default="")
    data: Mapped[JsonDict | None]


class BankEntry(Base):
    """Index of one entry of a Prompt Bank in reach; the entry itself is in the bank's folder, and that counts."""

    __tablename__ = "bank_entries"

    bank: Mapped[str] = mapped_column(Text, primary_key=True)
    """Absolute path of the bank's folder."""
    shelf: Mapped[str] = mapped_column(Text, primary_key=True)
    """Name of the LLM's shelf in it: the same text is another prompt to another LLM."""
    entry: Mapped[str] = mapped_column(Text, primary_key=True)
    """Its id, the hash of the prompt."""
    model: Mapped[str]
    kind: Mapped[str]
    task: Mapped[str] = mapped_column(default="")
    source: Mapped[str] = mapped_column(default="")
    owner: Mapped[str] = mapped_column(default="")
    licence: Mapped[str] = mapped_column(default="")
    version: Mapped[str] = mapped_column(default="")
    ita: Mapped[int | None]
    """Iterations of the job that it comes from."""
    created: Mapped[str] = mapped_column(default="")
    """ISO time at which it entered the bank."""
    outcomes: Mapped[JsonList] = mapped_column(default=list)
    """Jobs that started from it, ``[job, reached, iterations to the target or null]`` each, the latest last."""
    updated_at: Mapped[float]


class Meta(Base):
    """Facts about the database itself: home id, who made the schema, the retention horizon of events."""

    __tablename__ = "meta"

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[str]
