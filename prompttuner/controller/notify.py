"""Tell the user of a deadline that is missed or in danger: command, webhook, mail; once for each deadline."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import Sequence
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from prompttuner.controller.tx import Tx
from prompttuner.db.models import Event, Job
from prompttuner.errors import ConfigError
from prompttuner.spec.when import iso

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from prompttuner.controller.context import Context

__all__ = ["tell_of_deadlines"]

MISSED = "deadline.missed"
ENDANGERED = "deadline.endangered"
HOOK_S = 5.0
"""Longest wait for one hook: the tick waits meanwhile."""
AT_ONCE = 10
"""Most deadlines told of in one tick; the others follow in the next."""


def tell_of_deadlines(ctx: Context, jobs: Sequence[Job]) -> int:
    """Record and tell which deadlines were missed, or cannot be met any more, since the last tick; returns how many.

    The event is committed before anybody is told, so that nobody is told twice.
    """
    now = ctx.now()
    late = [(job, MISSED) for job in jobs if job.deadline_at is not None and now > job.deadline_at]
    unsure = [
        (job, ENDANGERED) for job in jobs if job.deadline_at is not None and job.best_effort and now <= job.deadline_at
    ]
    found = [(job, kind) for job, kind in late + unsure if (job.id, kind, job.deadline_at) not in _told(ctx)][:AT_ONCE]
    if not found:
        return 0

    def work(session: Session) -> None:
        tx = Tx(session, now)
        for job, kind in found:
            tx.event(kind, job=job, cause=_cause(job, kind), data={"deadline_at": job.deadline_at})

    ctx.store.transact(ctx.ownership, work)
    for job, kind in found:
        _told(ctx).add((job.id, kind, job.deadline_at))
        _tell(ctx, _message(job, kind))
    return len(found)


def _told(ctx: Context) -> set[tuple[str, str, float | None]]:
    """What was told before, from the events: read once by each controller."""
    if ctx.told is None:

        def read(session: Session) -> set[tuple[str, str, float | None]]:
            rows = session.execute(
                select(Event.job_id, Event.kind, Event.data).where(Event.kind.in_([MISSED, ENDANGERED]))
            )
            return {(str(job), kind, (data or {}).get("deadline_at")) for job, kind, data in rows}

        ctx.told = ctx.store.query(read)
    return ctx.told


def _cause(job: Job, kind: str) -> str:
    return "the deadline has passed" if kind == MISSED else f"the deadline will probably be missed: {job.note}"


def _message(job: Job, kind: str) -> dict[str, Any]:
    return {
        "event": kind,
        "job": job.id,
        "name": job.name,
        "owner": job.owner,
        "deadline": None if job.deadline_at is None else iso(job.deadline_at),
        "step": job.step,
        "state": str(job.state),
        "note": job.note,
    }


def _tell(ctx: Context, message: dict[str, Any]) -> None:
    """Run all hooks that are set; a hook that fails is a warning, never an error of the tick."""
    s = ctx.settings
    body = json.dumps(message)
    try:
        if s.command_hook:
            subprocess.run(shlex.split(s.command_hook), input=body, text=True, timeout=HOOK_S, check=True)
        if s.webhook:
            _post(s.webhook, body)
        if s.mail:
            _mail(s.mail, message)
    except (OSError, subprocess.SubprocessError, ValueError, ConfigError) as error:
        ctx.warn(f"nobody could be told of {message['event']} of {message['job']}: {error}")


def _post(url: str, body: str) -> None:
    if not url.startswith(("https://", "http://")):
        raise ConfigError(f"webhook {url!r} must begin with https:// or http://")
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"}, method="POST")  # noqa: S310
    with urllib.request.urlopen(request, timeout=HOOK_S):  # noqa: S310
        pass


def _mail(address: str, message: dict[str, Any]) -> None:
    program = shutil.which("sendmail") or shutil.which("sendmail", path="/usr/sbin:/usr/lib")
    if program is None:
        raise ConfigError("`mail` is set, but this host has no sendmail; use `command_hook` or `webhook`")
    mail = EmailMessage()
    mail["To"] = address
    mail["Subject"] = f"prompttuner: {message['event']} {message['name'] or message['job']}"
    mail.set_content("\n".join(f"{key}: {value}" for key, value in message.items()))
    subprocess.run([program, "-t", "-oi"], input=mail.as_bytes(), timeout=HOOK_S, check=True)
