"""Measured speeds and start-up times of models in pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from prompttuner.db.queries.bulk import table_of, upsert_rows
from prompttuner.db.tables.models import SpeedProfile, StartupProfile

__all__ = ["STARTUP_KINDS", "load_speeds", "load_startups", "save_speeds", "save_startups"]

STARTUP_KINDS = ("queue", "start", "warm", "resize", "switch", "lookup")

_SPEED = table_of(SpeedProfile)
_STARTUP = table_of(StartupProfile)


def load_speeds(session: Session) -> Sequence[Row[Any]]:
    """All speeds: pool, model, members, iters_per_s, samples, origin, updated_at."""
    return session.execute(select(*_SPEED.c).order_by(_SPEED.c.pool, _SPEED.c.model, _SPEED.c.members)).all()


def load_startups(session: Session) -> Sequence[Row[Any]]:
    """All start-up times: pool, model, kind, seconds, samples, origin, updated_at."""
    return session.execute(select(*_STARTUP.c).order_by(_STARTUP.c.pool, _STARTUP.c.model, _STARTUP.c.kind)).all()


def save_speeds(session: Session, rows: Sequence[Mapping[str, Any]], at: float) -> None:
    """Insert or replace: pool, model, members, iters_per_s, samples, origin each."""
    upsert_rows(session, _SPEED, [{**row, "updated_at": at} for row in rows])


def save_startups(session: Session, rows: Sequence[Mapping[str, Any]], at: float) -> None:
    """Insert or replace: pool, model, kind (of STARTUP_KINDS), seconds, samples, origin each."""
    for row in rows:
        if row["kind"] not in STARTUP_KINDS:
            raise ValueError(f"no such start-up time: {row['kind']}")
    upsert_rows(session, _STARTUP, [{**row, "updated_at": at} for row in rows])
