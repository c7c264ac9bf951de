"""Alembic's entry point: runs on the connection, and in the transaction, that the caller opened."""

from alembic import context

from prompttuner.db.tables.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    transactional_ddl=False,  # the caller commits, once, for all revisions together
)
context.run_migrations()
