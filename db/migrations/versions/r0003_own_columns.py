"""Columns of one meaning each, what failed starts leave, and nothing that no one reads.

``jobs.loss`` was the training loss of a running job and the evaluation loss of an ended one; the budget of a lookup
stood among what the worker reports of it. ``leases.started_at`` was never set, ``jobs.attempts`` never read.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

WITH_RESULT = ("done", "exhausted")


def upgrade() -> None:
    for name in ("lookup_budget_s", "train_loss", "eval_loss"):
        op.add_column("jobs", sa.Column(name, sa.Double(), nullable=True))
    for name in ("end_cause", "end_detail"):
        op.add_column("allocations", sa.Column(name, sa.Text(), nullable=True))
    _divide()
    op.drop_column("jobs", "loss")
    op.drop_column("jobs", "attempts")
    op.drop_column("leases", "started_at")
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "pool_trials",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("failures", whole, nullable=False),
        sa.Column("paused_until", sa.Double(), nullable=False),
        sa.Column("nodes", sa.JSON(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("allocation", sa.Text(), nullable=True),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("pool", name="pk_pool_trials"),
    )
    op.create_table(
        "node_faults",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("faults", whole, nullable=False),
        sa.Column("excluded_until", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("node", name="pk_node_faults"),
    )


def _divide() -> None:
    """Each old value goes to the column of its meaning."""
    jobs = sa.table(
        "jobs",
        sa.column("id", sa.Text()),
        sa.column("state", sa.Text()),
        sa.column("loss", sa.Double()),
        sa.column("train_loss", sa.Double()),
        sa.column("eval_loss", sa.Double()),
        sa.column("lookup", sa.JSON(none_as_null=True)),
        sa.column("lookup_budget_s", sa.Double()),
    )
    connection = op.get_bind()
    ended = jobs.c.state.in_(WITH_RESULT)
    connection.execute(jobs.update().where(ended).values(eval_loss=jobs.c.loss))
    connection.execute(jobs.update().where(~ended).values(train_loss=jobs.c.loss))
    known = connection.execute(sa.select(jobs.c.id, jobs.c.lookup).where(jobs.c.lookup.is_not(None))).all()
    for job, lookup in known:
        if not isinstance(lookup, dict) or not isinstance(lookup.get("budget_s"), int | float):
            continue
        report = None if lookup.keys() == {"budget_s"} else lookup
        values = {"lookup_budget_s": float(lookup["budget_s"]), "lookup": report}
        connection.execute(jobs.update().where(jobs.c.id == job).values(**values))
