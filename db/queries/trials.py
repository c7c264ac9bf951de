"""Pools that are on trial, and nodes that are kept away from: what failed starts leave until one succeeds."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from prompttuner.db.queries.bulk import table_of, upsert_rows
from prompttuner.db.tables.models import Allocation, NodeFault, PoolTrial

__all__ = ["exclude", "excluded", "forget", "known_nodes", "load", "readmit", "save", "to_exclude"]

_TRIAL, _NODE = table_of(PoolTrial), table_of(NodeFault)


def load(session: Session) -> dict[str, PoolTrial]:
    """All trials by pool; the empty key stands for every pool."""
    return {row.pool: row for row in session.scalars(select(PoolTrial))}


def save(session: Session, trial: PoolTrial, at: float) -> None:
    """Insert or replace one."""
    names = [column.name for column in _TRIAL.c if column.name != "updated_at"]
    upsert_rows(session, _TRIAL, [{**{name: getattr(trial, name) for name in names}, "updated_at": at}])


def forget(session: Session, pools: Collection[str] | None = None) -> list[str]:
    """End trials, of these pools or all; returns those that there were."""
    there = [pool for pool in session.scalars(select(_TRIAL.c.pool)) if pools is None or pool in pools]
    if there:
        session.execute(delete(_TRIAL).where(_TRIAL.c.pool.in_(there)))
    return there


def known_nodes(session: Session) -> int:
    """How many nodes allocations have run on so far, as far as their rows are still there."""
    return int(session.scalar(select(func.count(func.distinct(Allocation.node)))) or 0)


def exclude(session: Session, node: str, until: float, reason: str, at: float) -> None:
    """Keep away from a node for a while; a fault there before counts on."""
    before = session.get(NodeFault, node)
    row = {
        "node": node,
        "faults": 1 if before is None else before.faults + 1,
        "excluded_until": until,
        "reason": reason,
        "updated_at": at,
    }
    upsert_rows(session, _NODE, [row])


def to_exclude(session: Session, pool: str, now: float) -> list[str]:
    """Nodes that an allocation of this pool keeps away from: fewer than half of those that were ever seen.

    Those that were at fault a while ago, and those where the pool has just failed by its own.
    """
    most = max(0, (known_nodes(session) - 1) // 2)
    trial = session.get(PoolTrial, pool)
    failed = [] if trial is None else [str(node) for node in trial.nodes]
    return list(dict.fromkeys([*(one.node for one in excluded(session, now)), *failed]))[:most]


def readmit(session: Session) -> int:
    """Forget all nodes that are kept away from; returns how many there were."""
    nodes = list(session.scalars(select(_NODE.c.node)))
    if nodes:
        session.execute(delete(_NODE))
    return len(nodes)


def excluded(session: Session, now: float) -> Sequence[NodeFault]:
    """Nodes that are kept away from now, those that fail most first."""
    query = select(NodeFault).where(NodeFault.excluded_until > now).order_by(NodeFault.faults.desc(), NodeFault.node)
    return session.scalars(query).all()
