"""Alembic migrations; run by ``prompttuner.db.schema.upgrade``."""
