"""Small files that other processes and hosts read: atomic, private, never half-written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["append_line", "create_json", "make_private_dir", "read_json", "sha256_file", "write_bytes", "write_json"]

PRIVATE_FILE = 0o600
PRIVATE_DIR = 0o700
CHUNK = 65536
"""Bytes read at once."""


def make_private_dir(path: Path) -> Path:
    """Create ``path`` and its missing parents with mode 0700, whatever the umask."""
    for folder in reversed([path, *path.parents]):
        if not folder.exists():
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=PRIVATE_DIR)
                mode = stat.S_IMODE(folder.stat().st_mode)
                if mode & PRIVATE_DIR != PRIVATE_DIR:  # a umask such as 177, which is meant for files
                    folder.chmod(mode | PRIVATE_DIR)  # setgid, where the parent has it, stays
    return path


def write_bytes(path: Path, data: bytes, mode: int = PRIVATE_FILE, *, durable: bool = True) -> None:
    """Replace ``path`` atomically (same-folder rename), flushed to disk first unless not ``durable``.

    Not durable is for what only living processes read (heartbeats, progress): a flush can take long on a busy disk.

    Raises:
        OSError: disk full, folder missing; the old content is then untouched and no scrap is left.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as handle:
            os.fchmod(fd, mode)  # a file that a group shall read must not depend on its writer's umask
            handle.write(data)
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        scratch.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def write_json(path: Path, value: Any, mode: int = PRIVATE_FILE, *, durable: bool = True) -> None:
    """Replace a JSON file atomically; ``durable`` as in :func:`write_bytes`."""
    write_bytes(path, (json.dumps(value, separators=(",", ":"), sort_keys=True) + "\n").encode(), mode, durable=durable)


def create_json(path: Path, value: Any, mode: int = PRIVATE_FILE) -> bool:
    """Create a JSON file only if it does not exist yet; True if this call made it.

    A hard link of a complete scratch file is used, so that a reader never sees half of it and two hosts on NFS can
    not both succeed.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    write_bytes(scratch, (json.dumps(value, separators=(",", ":"), sort_keys=True) + "\n").encode(), mode)
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
    return True


def read_json(path: Path | str, check: Callable[[os.stat_result], None] | None = None) -> Any:
    """The content of a JSON file, or None when it is missing or (on a network file system) momentarily unreadable.

    ``check`` is given the open file's status, and may refuse the file by raising; links are then not followed.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | (0 if check is None else os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fd = os.open(path, flags)  # plain calls: a tick reads thousands of files, and file objects take twice as long
        try:
            if check is not None:
                check(os.fstat(fd))
            return json.loads(_read_all(fd).decode())
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):  # no JSON, or none that Python takes
        return None
    except OSError as error:
        if error.errno in {errno.ESTALE, errno.EIO}:  # NFS replaced it under us; the next poll sees it
            return None
        raise


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, CHUNK):
        parts.append(part)
    return b"".join(parts)


def append_line(path: Path, value: Any, mode: int = PRIVATE_FILE) -> None:
    """Append one JSON line to a journal that has exactly one writer."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode)
    try:
        os.write(fd, (json.dumps(value, separators=(",", ":")) + "\n").encode())
    finally:
        os.close(fd)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
