"""Take a finished job's result: copy what the accepted member wrote to the job's own folder, once."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from prompttuner.errors import SpoolError

__all__ = ["promote"]

MAX_RESULT_BYTES = 2 << 30
SUMMARY = "result.json"


def promote(job_dir: Path, member_dir: Path) -> Path:
    """Copy ``member_dir/result`` to ``job_dir/result``; returns the latter.

    Idempotent: a result that was promoted before is complete (it appears by rename) and stays; one that somebody else
    has put there is moved aside. Links and other odd things that a member might have written are refused, not followed.

    Raises:
        SpoolError: the result is missing, odd or huge.
        OSError: disk full; nothing is left half-done.
    """
    target = job_dir / "result"
    source = member_dir / "result"
    there = source.is_dir() and not source.is_symlink()
    if os.path.lexists(target):
        if _same(target, source) or not there:
            return target
        target.rename(job_dir / f"result.foreign.{uuid.uuid4().hex[:8]}")
    if not there:
        raise SpoolError(f"{member_dir} says it is done, but has no result")
    _check(source)
    scratch = job_dir / f".result.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    try:
        shutil.copytree(source, scratch)
        scratch.chmod(0o700)
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return target


def _same(target: Path, source: Path) -> bool:
    """Whether the promoted result is the member's: by its summary."""
    if target.is_symlink() or not target.is_dir():
        return False
    try:
        return (target / SUMMARY).read_bytes() == (source / SUMMARY).read_bytes()
    except FileNotFoundError:
        return not (target / SUMMARY).exists() and not (source / SUMMARY).exists()


def _check(source: Path) -> None:
    total = 0
    for path in source.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise SpoolError(f"{path} is not a plain file: the result is refused")
        total += path.lstat().st_size
        if total > MAX_RESULT_BYTES:
            raise SpoolError(f"the result in {source} is larger than {MAX_RESULT_BYTES >> 30} GiB: refused")
