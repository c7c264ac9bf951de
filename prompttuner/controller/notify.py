"""Tell the user of a deadline that is missed or in danger: command, webhook, mail; once for each deadline."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from email.message import EmailMessage
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import defer

from prompttuner.controller.tx import Tx
from prompttuner.db.models import Event, Job
from prompttuner.errors import ConfigError
from prompttuner.spec.when import iso
from prompttuner.states import JOB_ENDED, JobState

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from prompttuner.controller.context import Context

__all__ = ["tell_of_deadlines"]

MISSED = "deadline.missed"
ENDANGERED = "deadline.endangered"
STDERR = 2
HOOK_S = 5.0
"""Longest wait for one hook: the tick waits meanwhile."""
AT_ONCE_S = 15.0
"""After so long the rest is told in the next tick."""
LOOK_BACK_S = 86400.0
"""A new controller tells what a killed one did not get to, if it is no older."""


def tell_of_deadlines(ctx: Context, jobs: Sequence[Job]) -> int:
    """Record and tell which deadlines were missed, or cannot be met any more, since the last tick; returns how many.

    Each event is committed before anybody is told, so that nobody is told twice; a controller that is killed right
    between tells nobody, and the event remains. Each commit renews the ownership, however long hooks take.

    Args:
        jobs: those that have not ended.
    """
    began, now = time.monotonic(), ctx.now()
    dated = [job for job in jobs if job.deadline_at is not None]
    late = [(job, MISSED) for job in dated if now > float(job.deadline_at or 0.0)]
    unsure = [(job, ENDANGERED) for job in dated if job.best_effort and now <= float(job.deadline_at or 0.0)]
    ended = [(job, MISSED) for job in _ended(ctx, dated)]
    told = 0
    for job, kind in [*late, *unsure, *ended]:
        if (job.id, kind, job.deadline_at) in _told(ctx):
            continue
        if time.monotonic() - began > AT_ONCE_S:
            ctx.dated = None  # so that ended ones are looked for again
            break
        _record(ctx, job, kind)
        _told(ctx).add((job.id, kind, job.deadline_at))
        _tell(ctx, _message(job, kind))
        told += 1
    return told


def _record(ctx: Context, job: Job, kind: str) -> None:
    def work(session: Session) -> None:
        Tx(session, ctx.now()).event(kind, job=job, cause=_cause(job, kind), data={"deadline_at": job.deadline_at})

    ctx.store.transact(ctx.ownership, work)


def _ended(ctx: Context, dated: Sequence[Job]) -> list[Job]:
    """Jobs that have ended without having met their deadline: asked for when one of the last tick's is gone.

    A job may miss its deadline and end between two ticks, or be stopped by the tick that sees it miss.
    """
    present = frozenset(job.id for job in dated)
    before, ctx.dated = ctx.dated, present
    if before is not None and before <= present:
        return []
    missed = (Job.state != JobState.DONE) | (Job.finished_at > Job.deadline_at)
    query = select(Job).where(
        Job.finished_at > ctx.now() - LOOK_BACK_S,
        Job.deadline_at.is_not(None),
        Job.state.in_(sorted(JOB_ENDED - {JobState.CANCELLED})),
        missed,
    )
    columns = defer(Job.spec), defer(Job.history), defer(Job.evaluations)
    return ctx.store.query(lambda session: list(session.scalars(query.options(*columns))))


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
    if kind == ENDANGERED:
        return f"the deadline will probably be missed: {job.note}"
    return (
        "the deadline has passed" if job.state not in JOB_ENDED else f"the job has ended without meeting it: {job.note}"
    )


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
    """Run all hooks that are set, each on its own; one that fails is a warning, never an error of the tick."""
    s, body = ctx.settings, json.dumps(message)
    hooks: list[tuple[str | None, Callable[[str], object]]] = [
        (s.command_hook, lambda command: _call(shlex.split(command), body.encode())),
        (s.webhook, lambda url: _post(url, body)),
        (s.mail, lambda address: _mail(address, message)),
    ]
    for setting, hook in hooks:
        if not setting:
            continue
        try:
            hook(setting)
        except (OSError, subprocess.SubprocessError, HTTPException, ValueError, ConfigError) as error:
            ctx.warn(f"nobody could be told of {message['event']} of {message['job']}: {error}")


def _call(command: Sequence[str], text: bytes) -> None:
    """Run a program; what it prints goes to our standard error, which is the log."""
    subprocess.run(command, input=text, stdout=STDERR, timeout=HOOK_S, check=True)


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
    _call([program, "-t", "-oi"], mail.as_bytes())
