"""Why Slurm lets an allocation wait, and who says when it ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("allocations", sa.Column("reason", sa.Text(), server_default="", nullable=False))
    op.add_column("allocations", sa.Column("end_source", sa.Text(), nullable=True))
