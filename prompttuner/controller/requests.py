"""Requests: how every command asks for a change, from whatever host, without writing the database."""

from __future__ import annotations

import getpass
import os
import secrets
import time
import uuid
from typing import Any

from prompttuner.config import Settings
from prompttuner.errors import SpecError, SpoolError
from prompttuner.files import write_json
from prompttuner.slurm.spool import Spool

__all__ = ["KINDS", "leave", "new_job_id"]

KINDS = frozenset(
    {"submit", "cancel", "update", "hold", "release", "scale", "drain", "release_agent", "purge", "resume_pool"}
)
"""Kinds a controller understands; anything else is answered with an error, not ignored."""

BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def new_job_id() -> str:
    """A fresh job id: ``j`` and nine lower-case base-32 characters (45 random bits)."""
    return "j" + "".join(secrets.choice(BASE32) for _ in range(9))


def leave(settings: Settings, request: dict[str, Any]) -> str:
    """Put a request into the spool's inbox; returns its id. A running controller applies it within a tick.

    ``request`` holds ``kind`` and its arguments; ``id``, ``at`` and ``by`` are filled in where they are missing.

    Raises:
        SpecError: an unknown kind.
        SpoolError: the inbox cannot be written (full disk, rights); nothing was left then.
    """
    if request.get("kind") not in KINDS:
        raise SpecError(f"unknown request kind {request.get('kind')!r}; known: {', '.join(sorted(KINDS))}")
    body = {"id": uuid.uuid4().hex, "at": time.time(), "by": _user(), **request}
    spool = Spool(settings.spool_dir).ensure()
    try:
        write_json(spool.request(str(body["id"])), body)
    except OSError as error:
        raise SpoolError(f"the request could not be left in {spool.inbox}: {error.strerror or error}") from error
    return str(body["id"])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
