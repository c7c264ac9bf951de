"""Alembic migrations; run by ``prompttuner.db.store.schema.upgrade``."""
