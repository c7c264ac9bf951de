"""The Prompt Bank's index gets a key that fits: one text can be an entry for several LLMs, in several banks.

No version ever wrote the old table. An index is made again from the folders, so no row is carried over.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

KEY = ("bank", "shelf", "entry")
WORDS = ("model", "kind", "task", "source", "owner", "licence", "version")


def upgrade() -> None:
    op.drop_table("bank_entries")
    op.create_table(
        "bank_entries",
        *(sa.Column(name, sa.Text(), nullable=False) for name in (*KEY, *WORDS)),
        sa.Column("ita", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("created", sa.Text(), nullable=False),
        sa.Column("outcomes", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint(*KEY, name="pk_bank_entries"),
    )
