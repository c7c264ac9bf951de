"""The first schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _jobs()
    _allocations_and_leases()
    _events_and_requests()
    _profiles_and_bank()
    _ownership_and_meta()
    _append_only_events()


def _text(name: str, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _real(name: str, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Double(), nullable=nullable)


def _number(name: str, nullable: bool = False, autoincrement: bool = True) -> sa.Column[Any]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=nullable, autoincrement="auto" if autoincrement else False)


def _data(name: str, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON(), nullable=nullable)


def _flag(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean(), nullable=False)


def _jobs() -> None:
    op.create_table(
        "jobs",
        _text("id"),
        _text("name"),
        _text("owner"),
        _text("state"),
        _data("spec"),
        _text("pool"),
        _text("model"),
        _real("submitted_at"),
        _real("deadline_at", nullable=True),
        _number("priority"),
        _number("min_gpus"),
        _number("max_gpus"),
        _flag("best_effort"),
        _text("on_miss"),
        _number("scale_to", nullable=True),
        _number("generation"),
        _number("plan_generation"),
        _data("members"),
        _flag("lookup_done"),
        _data("lookup", nullable=True),
        _text("initial_prompt"),
        _number("step"),
        _real("loss", nullable=True),
        _real("metric", nullable=True),
        _real("best", nullable=True),
        _data("evaluations", nullable=True),
        _number("ita", nullable=True),
        _real("iters_mid", nullable=True),
        _real("iters_hi", nullable=True),
        _real("iters_per_s", nullable=True),
        _real("first_step_at", nullable=True),
        _real("started_at", nullable=True),
        _real("state_since"),
        _real("finished_at", nullable=True),
        _text("outcome", nullable=True),
        _text("error", nullable=True),
        _text("note"),
        _number("attempts"),
        _number("crash_count"),
        _real("gpu_seconds"),
        _flag("purged"),
        _data("history"),
        _real("updated_at"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    lagging = sa.text("plan_generation < generation")
    op.create_index("ix_jobs_behind", "jobs", ["id"], sqlite_where=lagging, postgresql_where=lagging)
    op.create_index(
        "ix_jobs_purged", "jobs", ["id"], sqlite_where=sa.text("purged = 1"), postgresql_where=sa.text("purged")
    )
    op.create_index("ix_jobs_pool_submitted_at", "jobs", ["pool", "submitted_at"])
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"])
    op.create_index("ix_jobs_state_submitted_at", "jobs", ["state", "submitted_at"])


def _allocations_and_leases() -> None:
    op.create_table(
        "allocations",
        _text("uuid"),
        _text("state"),
        _text("pool"),
        _text("model"),
        _data("place", nullable=True),
        _text("native_id", nullable=True),
        _text("native_state"),
        _number("gpus"),
        _text("job_id", nullable=True),
        _text("reserved_for", nullable=True),
        _real("created_at"),
        _real("submitted_at", nullable=True),
        _real("started_at", nullable=True),
        _real("warm_at", nullable=True),
        _real("idle_since", nullable=True),
        _real("state_since"),
        _real("ended_at", nullable=True),
        _real("ends_at", nullable=True),
        _text("node", nullable=True),
        _text("host", nullable=True),
        _text("address", nullable=True),
        _flag("admitted"),
        _real("suspect_since", nullable=True),
        _flag("drain"),
        _data("order", nullable=True),
        _data("status", nullable=True),
        _text("end_reason", nullable=True),
        _real("updated_at"),
        sa.PrimaryKeyConstraint("uuid", name="pk_allocations"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_allocations_job_id", ondelete="SET NULL"),
    )
    op.create_index("ix_allocations_ended_at", "allocations", ["ended_at"])
    op.create_index("ix_allocations_job_id", "allocations", ["job_id"])
    op.create_index("ix_allocations_state", "allocations", ["state"])
    op.create_table(
        "leases",
        _number("id"),
        _text("job_id"),
        _text("allocation"),
        _number("generation"),
        _number("rank"),
        _real("granted_at"),
        _real("started_at", nullable=True),
        _real("ended_at", nullable=True),
        _text("end_reason", nullable=True),
        _number("steps"),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
        sa.ForeignKeyConstraint(["allocation"], ["allocations.uuid"], name="fk_leases_allocation", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_leases_job_id", ondelete="CASCADE"),
    )
    op.create_index("ix_leases_allocation", "leases", ["allocation"])
    op.create_index("ix_leases_ended_at", "leases", ["ended_at"])
    op.create_index("ix_leases_job_id_generation", "leases", ["job_id", "generation"])


def _events_and_requests() -> None:
    op.create_table(
        "events",
        _number("seq"),
        _real("at"),
        _text("kind"),
        _text("job_id", nullable=True),
        _text("allocation", nullable=True),
        _text("cause"),
        _data("data", nullable=True),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_allocation_seq", "events", ["allocation", "seq"])
    op.create_index("ix_events_at", "events", ["at"])
    op.create_index("ix_events_kind_seq", "events", ["kind", "seq"])
    op.create_index("ix_events_job_id_seq", "events", ["job_id", "seq"])
    op.create_table(
        "requests",
        _text("id"),
        _text("kind"),
        _real("at"),
        _text("by"),
        _real("applied_at"),
        _flag("ok"),
        _text("message"),
        _data("data", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
    )
    op.create_index("ix_requests_applied_at", "requests", ["applied_at"])


def _profiles_and_bank() -> None:
    op.create_table(
        "speed_profiles",
        _text("pool"),
        _text("model"),
        _number("members", autoincrement=False),
        _real("iters_per_s"),
        _number("samples"),
        _text("origin"),
        _real("updated_at"),
        sa.PrimaryKeyConstraint("pool", "model", "members", name="pk_speed_profiles"),
    )
    op.create_table(
        "startup_profiles",
        _text("pool"),
        _text("model"),
        _text("kind"),
        _real("seconds"),
        _number("samples"),
        _text("origin"),
        _real("updated_at"),
        sa.PrimaryKeyConstraint("pool", "model", "kind", name="pk_startup_profiles"),
    )
    op.create_table(
        "bank_entries",
        _text("hash"),
        _text("pool"),
        _text("model"),
        _text("path"),
        _text("kind"),
        _text("note"),
        _real("quality", nullable=True),
        _number("uses"),
        _data("outcomes"),
        _flag("medoid"),
        _number("cluster", nullable=True),
        _real("created_at"),
        _real("updated_at"),
        sa.PrimaryKeyConstraint("hash", name="pk_bank_entries"),
    )
    op.create_index("ix_bank_entries_pool_model", "bank_entries", ["pool", "model"])


def _ownership_and_meta() -> None:
    op.create_table(
        "ownership",
        _number("id", autoincrement=False),
        _number("generation"),
        _text("owner", nullable=True),
        _text("host"),
        _text("machine"),
        _number("pid"),
        _text("pid_start"),
        _text("command"),
        _number("beat"),
        _real("ttl_s"),
        _real("acquired_at", nullable=True),
        _real("renewed_at", nullable=True),
        _real("expires_at", nullable=True),
        _text("last_write"),
        sa.PrimaryKeyConstraint("id", name="pk_ownership"),
    )
    op.create_table(
        "meta",
        _text("key"),
        _text("value"),
        sa.PrimaryKeyConstraint("key", name="pk_meta"),
    )


def _append_only_events() -> None:
    """No update ever; a deletion only up to the retention horizon that ``meta`` names (retention.py moves it)."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(_SQLITE_NO_UPDATE)
        op.execute(_SQLITE_NO_DELETE)
        return
    op.execute(_POSTGRES_FUNCTION)
    op.execute(_POSTGRES_TRIGGER)


_HORIZON = "SELECT CAST(value AS BIGINT) FROM meta WHERE key = 'events_horizon'"

_SQLITE_NO_UPDATE = """
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END
"""

_SQLITE_NO_DELETE = f"""
CREATE TRIGGER events_no_delete BEFORE DELETE ON events WHEN OLD.seq > coalesce(({_HORIZON}), 0)
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END
"""

_POSTGRES_FUNCTION = f"""
CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' AND OLD.seq <= coalesce(({_HORIZON}), 0) THEN
    RETURN OLD;
  END IF;
  RAISE EXCEPTION 'events are append-only';
END $$
"""

_POSTGRES_TRIGGER = """
CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE ON events
FOR EACH ROW EXECUTE FUNCTION events_append_only()
"""
