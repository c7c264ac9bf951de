"""Forgetting by age and size: folders of ended jobs and agents, replies, old rows. Never touches what still lives."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prompttuner.controller.resources import Resources
from prompttuner.db.queries import allocations as allocation_rows
from prompttuner.db.queries import jobs as job_rows
from prompttuner.db.upkeep import retention
from prompttuner.files import read_json, write_bytes, write_json

__all__ = ["Retention", "clean_up"]

EVERY_S = 3600.0
DAY_S = 86400.0
JUMP_S = 3 * DAY_S
"""A longer gap between two clean-ups may be a clock that is wrong."""
PURGE_AGAIN_S = 60.0
TICK_LOG = "tick.log"
"""Where the line of ``cron install`` writes, in the folder of logs."""
LOG_BYTES = 10_000_000
ORPHAN_S = DAY_S
"""A folder of the spool without a row is removed after this long: it was left by a submit that never was applied."""


class Retention:
    """Removes what is old or asked to be purged; it remembers when a purge that failed is tried again."""

    def __init__(self, resources: Resources) -> None:
        self._res = resources
        self._purge_again_at = float("-inf")
        """When to look for unfinished purges again (steady seconds); a new controller looks at once."""

    def purge_asked(self, asked: bool = True) -> int:
        """Remove the jobs that the user asked to purge: folder first, so that a cut-off purge is taken up again.

        ``asked``: a request came in; else this looks only for what a controller before left undone, and tries again
        what could not be removed.
        """
        res, now = self._res, self._res.steady()
        if not asked and now < self._purge_again_at:
            return 0
        ids = res.state.query(job_rows.purged_ids)
        gone = [job_id for job_id in ids if _removed(res, res.spool.job(job_id))]
        if gone:
            res.state.write(lambda session: retention.purge_jobs(session, gone, res.now()))
        self._purge_again_at = float("inf") if len(gone) == len(ids) else now + PURGE_AGAIN_S
        return len(gone)

    def clean_up(self) -> None:
        """Apply ``keep_days`` and ``keep_mb``, at most once an hour (the time of the last one is in the spool)."""
        clean_up(self._res)


def _removed(res: Resources, folder: Path) -> bool:
    """Remove a folder, never what a link in it (or in its place) points at; whether nothing of it is left."""
    try:
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        res.warn(f"{folder} cannot be removed: {error.strerror or error} ({error.filename}); tried again later")
    return not os.path.lexists(folder)


def clean_up(res: Resources) -> None:
    """Apply ``keep_days`` and ``keep_mb``, at most once an hour (the time of the last one is a file in the spool)."""
    stamp = res.spool.root / "cleaned.json"
    now, last = res.now(), _stamped(stamp)
    if 0 <= now - last.at < EVERY_S:  # one of a clock that has since been put back does not count
        return
    doubted_until = _doubted_until(res, last, now)
    write_json(stamp, {"at": now, "doubted_until": doubted_until})
    live, known = res.state.query(allocation_rows.live_ids), res.state.query(job_rows.ids)
    if now >= doubted_until:
        _forget_old(res, now)
        live, known = res.state.query(allocation_rows.live_ids), res.state.query(job_rows.ids)
    _shorten(res.settings.logs_dir / TICK_LOG)
    _limit_size(res, live, known)


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What the last clean-up left."""

    at: float = 0.0
    doubted_until: float = 0.0
    """The clock had jumped: until then nothing is old."""


def _doubted_until(res: Resources, last: _Stamp, now: float) -> float:
    """How long the clock must go on as it is before anything counts as old.

    Nobody can tell a clock that is weeks ahead from weeks without a tick; what was removed for it is gone for good.
    """
    if last.at <= 0 or now < last.at:
        return 0.0
    if now - last.at <= JUMP_S:
        return last.doubted_until
    res.warn(
        f"the clock is {(now - last.at) / DAY_S:.0f} days ahead of the last clean-up: nothing is removed for its age "
        "until it has gone on like this for a day"
    )
    return now + DAY_S


def _forget_old(res: Resources, now: float) -> None:
    """Remove what is older than ``keep_days``, and what nobody knows any more."""
    before = now - res.settings.keep_days * DAY_S
    old = res.state.query(lambda session: job_rows.ended_before(session, before))
    _remove(res.spool.job(job_id) for job_id in old)
    while res.state.write(lambda session: retention.prune(session, before, now)).total:
        pass
    live, known = res.state.query(allocation_rows.live_ids), res.state.query(job_rows.ids)
    _remove(path for path in _older(res.spool.agents, before) if path.name not in live)
    _remove(path for path in _older(res.spool.jobs, now - ORPHAN_S) if path.name not in known)
    scraps = [path for path in _older(res.spool.inbox, before) if path.suffix != ".json"]
    logs = [path for path in _older(res.settings.logs_dir, before) if path.name.startswith("controller-")]
    for path in [*_older(res.spool.replies, now - DAY_S), *scraps, *logs]:
        with contextlib.suppress(OSError):
            path.unlink()
    _remove(_older(res.settings.home / "submitit", before))


def _stamped(stamp: Path) -> _Stamp:
    value = read_json(stamp)
    found = value if isinstance(value, dict) else {}
    at, doubted = (found.get(name) for name in ("at", "doubted_until"))
    return _Stamp(*(float(one) if isinstance(one, int | float) else 0.0 for one in (at, doubted)))


def _limit_size(res: Resources, live: set[str], known: set[str]) -> None:
    """Remove the largest waste first-in first-out until ``keep_mb`` is kept.

    What members of ended jobs wrote, then folders of ended agents, results last.
    """
    active = res.state.query(job_rows.active_ids)
    folders = [path for path in res.spool.jobs.iterdir() if path.name in known and path.name not in active]
    agents = sorted((path for path in res.spool.agents.iterdir() if path.name not in live), key=_mtime)
    sizes = {folder: _size(folder) for folder in [*folders, *agents]}
    total = sum(sizes.values())
    limit = res.settings.keep_mb * 1e6
    if total <= limit:
        return
    ends = res.state.query(job_rows.ends)
    folders.sort(key=lambda folder: ends.get(folder.name) or 0.0)
    for folder in folders:  # checkpoints of ended jobs: nobody needs them any more
        if total <= limit:
            return
        _remove(path for path in folder.glob("g*") if path.is_dir())
        total -= sizes[folder] - _size(folder)
    for folder in [*agents, *folders]:
        if total <= limit:
            return
        total -= _size(folder)
        _remove([folder])


def _shorten(log: Path) -> None:
    """Keep the last half of a log that has grown large in a second file; cron goes on appending to the first."""
    try:
        if log.stat().st_size <= LOG_BYTES:
            return
        with log.open("rb") as handle:
            handle.seek(-LOG_BYTES // 2, os.SEEK_END)
            write_bytes(log.with_name(f"{log.name}.1"), handle.read())
        os.truncate(log, 0)
    except OSError:  # there is none
        return


def _older(folder: Path, before: float) -> list[Path]:
    return [path for path in folder.iterdir() if _mtime(path) < before] if folder.is_dir() else []


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path | str) -> int:
    """Bytes of the plain files in a folder; what cannot be looked at, or goes meanwhile, counts as nothing."""
    try:
        with os.scandir(path) as entries:
            return sum(_size_of(entry) for entry in entries)
    except OSError:
        return 0


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        folder = entry.is_dir(follow_symlinks=False)
        return _size(entry.path) if folder else entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
