"""Requests: how every command asks for a change, from whatever host, without writing the database."""

from __future__ import annotations

import getpass
import os
import secrets
import time
import uuid
from dataclasses import replace

from prompttuner.config import Settings
from prompttuner.errors import SpoolError
from prompttuner.protocol.files import write_message
from prompttuner.protocol.requests import Request
from prompttuner.slurm.spool import Spool

__all__ = ["leave", "new_job_id"]

BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def new_job_id() -> str:
    """A fresh job id: ``j`` and nine lower-case base-32 characters (45 random bits)."""
    return "j" + "".join(secrets.choice(BASE32) for _ in range(9))


def leave(settings: Settings, request: Request) -> str:
    """Put a request into the spool's inbox; returns its id. A running controller applies it within a tick.

    ``id``, ``at`` and ``by`` are filled in where they are empty.

    Raises:
        SpoolError: the inbox cannot be written (full disk, rights); nothing was left then.
    """
    whole = replace(request, id=request.id or uuid.uuid4().hex, at=request.at or time.time(), by=request.by or _user())
    spool = Spool(settings.spool_dir).ensure()
    try:
        write_message(spool.request(whole.id), whole)
    except OSError as error:
        raise SpoolError(f"the request could not be left in {spool.inbox}: {error.strerror or error}") from error
    return whole.id


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
