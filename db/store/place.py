"""Where a database is: URLs, paths, their form without secrets, and what kind of file system holds a file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from prompttuner.errors import DatabaseError

__all__ = ["NETWORK_FILE_SYSTEMS", "Place", "file_system_of", "look_at", "parse_place"]

# fmt: off
NETWORK_FILE_SYSTEMS = frozenset({
    "9p", "acfs", "afs", "auristorfs", "beegfs", "beegfs_nodev", "ceph", "cifs", "coda", "fuse.ceph",
    "fuse.ceph-fuse", "fuse.glusterfs", "fuse.juicefs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "gfs2", "glusterfs",
    "gpfs", "lustre", "mmfs", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "quobyte",
    "smb2", "smb3", "smbfs", "virtiofs", "wekafs",
})
# fmt: on

_UNREADABLE = (
    "the database URL cannot be read: give a path, or postgresql://user@host:port/name "
    "(special characters in a password as %xx)"
)


@dataclass(frozen=True, slots=True)
class Place:
    """A database's address."""

    url: URL = field(repr=False)
    path: Path | None
    """The file, for SQLite."""

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a SQLite file."""
        return self.path is not None

    def __str__(self) -> str:
        """For messages: the path, or the URL without any secret."""
        if self.path is not None:
            return str(self.path)
        secret = {key: "***" for key in self.url.query if "pass" in key.lower() or "key" in key.lower()}
        url = self.url.set(drivername="postgresql").update_query_dict(secret) if secret else self.url
        return url.set(drivername="postgresql").render_as_string(hide_password=True)


def parse_place(text: str | os.PathLike[str]) -> Place:
    """A path, ``sqlite:///path`` or ``postgresql://user@host/name`` as a Place.

    Raises:
        DatabaseError: neither, or a Postgres URL without the driver installed.
    """
    given = os.fspath(text)
    if not re.match(r"^[a-zA-Z][a-zA-Z0-9+]*://", given):
        path = Path(given).expanduser().absolute()
        return Place(URL.create("sqlite", database=str(path)), path)
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise DatabaseError(_UNREADABLE) from None
    if "@" in (url.host or ""):  # the rest of a password that holds one: it would show in every message
        raise DatabaseError(_UNREADABLE)
    kind = url.drivername.split("+")[0]
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise DatabaseError("a SQLite database needs a file: give its path, or sqlite:////absolute/path")
        path = Path(url.database).expanduser().absolute()
        return Place(URL.create("sqlite", database=str(path)), path)
    if kind in {"postgres", "postgresql"}:
        _need_psycopg()
        return Place(url.set(drivername="postgresql+psycopg"), None)
    raise DatabaseError(f"{kind} databases are not supported: use SQLite (a path) or postgresql://user@host/name")


def look_at(path: Path) -> os.stat_result | None:
    """The file's status; None if there is no such file.

    Raises:
        DatabaseError: that cannot be known (no right to look, a stale or absent network file system).
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        hint = ""
        if isinstance(error, PermissionError):
            hint = "; a cron job on AFS or Kerberised NFS needs a ticket of its own (such as k5start or aklog give)"
        raise DatabaseError(f"the database {path} cannot be looked at: {error.strerror}{hint}") from error


def _need_psycopg() -> None:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise DatabaseError("Postgres needs its driver: pip install 'prompttuner[postgres]'") from None


def file_system_of(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """The type of the file system that holds ``path`` (which need not exist), or None where that cannot be known."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    target = path.resolve()
    found: tuple[int, str] | None = None
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[1]))
        if target.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):
            found = (len(point.parts), fields[2])
    return found[1] if found else None
