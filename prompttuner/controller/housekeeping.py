"""Forgetting by age and size: folders of ended jobs and agents, replies, old rows. Never touches what still lives."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select

from prompttuner.db import retention
from prompttuner.db.allocations import LIVE_STATES
from prompttuner.db.jobs import ACTIVE_STATES
from prompttuner.db.models import Allocation, Job
from prompttuner.files import read_json, write_json

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from prompttuner.controller.context import Context

__all__ = ["clean_up", "purge_asked"]

EVERY_S = 3600.0
DAY_S = 86400.0
ORPHAN_S = DAY_S
"""A folder of the spool without a row is removed after this long: it was left by a submit that never was applied."""


def purge_asked(ctx: Context) -> int:
    """Remove the jobs that the user asked to purge: folder first, so that a cut-off purge is taken up again."""
    ids = ctx.store.query(lambda session: list(session.scalars(select(Job.id).where(Job.purged))))
    for job_id in ids:
        shutil.rmtree(ctx.spool.job(job_id), ignore_errors=True)
    gone = [job_id for job_id in ids if not ctx.spool.job(job_id).exists()]
    if gone:
        ctx.store.transact(ctx.ownership, lambda session: retention.purge_jobs(session, gone, ctx.now()))
    return len(gone)


def clean_up(ctx: Context) -> None:
    """Apply ``keep_days`` and ``keep_mb``, at most once an hour (the time of the last one is a file in the spool)."""
    stamp = ctx.spool.root / "cleaned.json"
    now = ctx.now()
    if now - float((read_json(stamp) or {}).get("at", 0.0)) < EVERY_S:
        return
    write_json(stamp, {"at": now})
    before = now - ctx.settings.keep_days * DAY_S
    old = ctx.store.query(lambda session: _ended_jobs(session, before))
    _remove(ctx.spool.job(job_id) for job_id in old)
    while ctx.store.transact(ctx.ownership, lambda session: retention.prune(session, before, now)).total:
        pass
    live, known = ctx.store.query(_names)
    _remove(path for path in _older(ctx.spool.agents, before) if path.name not in live)
    _remove(path for path in _older(ctx.spool.jobs, now - ORPHAN_S) if path.name not in known)
    for path in _older(ctx.spool.replies, now - DAY_S):
        path.unlink(missing_ok=True)
    _remove(_older(ctx.settings.home / "submitit", before))
    _limit_size(ctx)


def _ended_jobs(session: Session, before: float) -> list[str]:
    query = select(Job.id).where(Job.state.not_in(ACTIVE_STATES), Job.finished_at < before)
    return list(session.scalars(query))


def _names(session: Session) -> tuple[set[str], set[str]]:
    live = select(Allocation.uuid).where(Allocation.state.in_(LIVE_STATES))
    return set(session.scalars(live)), set(session.scalars(select(Job.id)))


def _limit_size(ctx: Context) -> None:
    """Remove the largest waste first-in first-out: what members wrote, results last, until ``keep_mb`` is kept."""
    query = select(Job.id).where(Job.state.not_in(ACTIVE_STATES)).order_by(Job.finished_at)
    folders = [ctx.spool.job(job_id) for job_id in ctx.store.query(lambda session: list(session.scalars(query)))]
    sizes = {folder: _size(folder) for folder in folders}
    total = sum(sizes.values())
    limit = ctx.settings.keep_mb * 1e6
    for folder in folders:  # checkpoints of ended jobs: nobody needs them any more
        if total <= limit:
            return
        _remove(path for path in folder.glob("g*") if path.is_dir())
        total -= sizes[folder] - _size(folder)
    for folder in folders:
        if total <= limit:
            return
        total -= _size(folder)
        _remove([folder])


def _older(folder: Path, before: float) -> list[Path]:
    return [path for path in folder.iterdir() if _mtime(path) < before] if folder.is_dir() else []


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
