"""Where each file of the spool lies, and the checks that make it safe to use."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path
from typing import Any, TypeVar

from prompttuner.errors import SpoolError
from prompttuner.files import create_json, make_private_dir, read_json, write_json
from prompttuner.protocol.agents import PROTOCOL
from prompttuner.protocol.files import read_message
from prompttuner.protocol.wire import Message, Unread

__all__ = ["Spool", "read_own", "read_own_json"]

M = TypeVar("M", bound=Message)
_UNOPENED = frozenset({errno.ELOOP, errno.ENXIO, errno.EACCES})
"""What a link, a socket, or another user's private file says when it is opened."""


def read_own_json(path: Path | str) -> Any:
    """Like :func:`prompttuner.files.read_json`, but refuses what another user wrote.

    Raises:
        SpoolError: the file belongs to another user, is a link, or may be written by others.
    """
    try:
        return read_json(path, lambda status: _check_own(path, status))
    except OSError as error:
        if error.errno in _UNOPENED:
            _check_own(path, os.lstat(path))
        raise


def read_own(kind: type[M], path: Path | str) -> M | Unread | None:
    """Like :func:`prompttuner.protocol.files.read_message`, but refuses what another user wrote.

    Raises:
        SpoolError: as in :func:`read_own_json`.
    """
    try:
        return read_message(kind, path, lambda status: _check_own(path, status))
    except OSError as error:
        if error.errno in _UNOPENED:
            _check_own(path, os.lstat(path))
        raise


def _check_own(path: Path | str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SpoolError(f"{path} is not a plain file: refused. Remove it, or use an own spool folder")
    if status.st_uid != os.getuid():
        raise SpoolError(f"{path} was written by another user (uid {status.st_uid}): refused. Spools are never shared")
    if status.st_mode & 0o022:
        raise SpoolError(f"{path} may be written by others: refused. Run: chmod go-w {path}")


class Spool:
    """The folder through which commands, controller, agents and workers talk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inbox = root / "inbox"
        self.replies = root / "replies"
        self.agents = root / "agents"
        self.jobs = root / "jobs"
        self.owner = root / "owner.json"
        self.protocol = root / "protocol.json"

    def ensure(self) -> Spool:
        """Create what is missing, and check that the spool is ours and speaks our protocol.

        Raises:
            SpoolError: it belongs to another user, or to a newer prompttuner, or cannot be written.
        """
        try:
            for folder in (self.root, self.inbox, self.replies, self.agents, self.jobs):
                make_private_dir(folder)
            status = self.root.stat()
            if status.st_uid != os.getuid():
                raise SpoolError(f"the spool {self.root} belongs to another user; set `spool` to a folder of your own")
            if status.st_mode & 0o022:
                raise SpoolError(f"others may write to the spool {self.root}. Run: chmod go-w {self.root}")
            known = read_own_json(self.protocol)
            version = known.get("protocol") if isinstance(known, dict) else None
            if isinstance(version, int) and version > PROTOCOL:
                raise SpoolError(
                    f"the spool {self.root} was written by a newer prompttuner (protocol {version}, "
                    f"this one speaks {PROTOCOL}); upgrade this installation"
                )
            if version != PROTOCOL:
                write_json(self.protocol, {"protocol": PROTOCOL})
        except PermissionError as error:
            raise SpoolError(
                f"the spool {self.root} cannot be used: permission denied. If this runs from cron, the folder may need "
                "a Kerberos or AFS ticket that cron jobs do not have: use scrontab, a keytab (k5start), "
                "`prompttuner controller start --in-slurm`, or a `spool` elsewhere"
            ) from error
        except OSError as error:
            raise SpoolError(f"the spool {self.root} cannot be used: {error.strerror or error}") from error
        return self

    def identity(self) -> str:
        """What tells this spool from any other, at the same path on another cluster, say; moves with the folder."""
        path = self.root / "id.json"
        known = read_own_json(path)
        if known is None:
            create_json(path, {"id": uuid.uuid4().hex})
            known = read_own_json(path)
        return str(known.get("id", "")) if isinstance(known, dict) else ""

    def agent(self, name: str) -> Path:
        """Folder of an agent."""
        return self.agents / name

    def job(self, job_id: str) -> Path:
        """Folder of a job."""
        return self.jobs / job_id

    def request(self, request_id: str) -> Path:
        """File of a request."""
        return self.inbox / f"{request_id}.json"

    def reply(self, request_id: str) -> Path:
        """File of the reply to a request."""
        return self.replies / f"{request_id}.json"
