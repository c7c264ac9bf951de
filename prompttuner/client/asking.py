"""Asking for a change: a request file in the spool's inbox, then an own tick, then the controller's answer."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from prompttuner.errors import BackendError, NotOwner, PromptTunerError
from prompttuner.protocol.files import read_message, understood
from prompttuner.protocol.requests import Reply, Request

if TYPE_CHECKING:
    from prompttuner.config import Settings

__all__ = ["Answer", "ask_all", "withdraw"]

ANSWER_WAIT_S = 10.0
"""A running controller answers within a tick; a longer silence is reported, and the request stays in the inbox."""
LOOK_S = 0.1
AGAIN_S = 1.0
"""An unanswered request is tried by a tick of our own this often: the owner may have been a command that has ended."""
WRONG_USE = 2
"""Exit code of errors after which nothing was changed."""

R = TypeVar("R", bound=Request)


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """What became of a request."""

    request: R
    applied: bool
    """False: it lies in the inbox, and the next tick of whoever is the controller applies it."""
    ok: bool
    message: str

    @property
    def refused(self) -> bool:
        """Whether the controller said no."""
        return self.applied and not self.ok


def ask_all(
    settings: Settings,
    requests: Sequence[R],
    wait_s: float | None = None,
    warn: Callable[[str], None] = lambda _text: None,
) -> list[Answer[R]]:
    """Leave requests, try to be the controller for one tick, and collect the answers.

    Args:
        wait_s: how long to wait for a controller that runs elsewhere; None: ``ANSWER_WAIT_S``.
        warn: is told what went wrong and will be tried again.

    Raises:
        SpoolError: the inbox cannot be written; what was left before stays valid.
        DatabaseError: the database cannot be used; found out before anything is left.
        PromptTunerError: the tick failed. After an error in settings (exit code 2) the requests were withdrawn, after
            another they stay; the message says which.
    """
    from prompttuner.controller.requests import leave
    from prompttuner.db.store.failures import NoDatabase
    from prompttuner.db.store.store import Store

    with contextlib.suppress(NoDatabase):  # the tick makes it
        Store.open(settings.database_url, read_only=True).close()
    named = [replace(request, id=request.id or uuid.uuid4().hex) for request in requests]
    for request in named:
        leave(settings, request)
    end = time.monotonic() + (ANSWER_WAIT_S if wait_s is None else wait_s)
    while not _try_tick(settings, named, warn) and time.monotonic() < end:
        answers = _collect(settings, named, min(AGAIN_S, end - time.monotonic()))
        if all(answer.applied for answer in answers):
            return answers
    return _collect(settings, named, 0.0)


def _try_tick(settings: Settings, requests: Sequence[Request], warn: Callable[[str], None]) -> bool:
    """One tick of our own; False when somebody else is the controller."""
    from prompttuner.controller.run import tick_once

    try:
        tick_once(settings)
    except NotOwner:
        return False
    except BackendError as error:
        warn(f"{error}; the next tick tries again")
    except PromptTunerError as error:
        if all(answer.applied for answer in _collect(settings, requests, 0.0)):
            warn(str(error))  # what was asked for is done; what failed came after it
            return True
        if error.exit_code == WRONG_USE:
            left = withdraw(settings, requests)
            what = "the request was withdrawn" if not left else f"{left} requests had been taken before"
        else:
            what = "the request stays in the inbox and is applied once this is mended"
        error.args = (f"{error} ({what})",)
        raise
    return True


def withdraw(settings: Settings, requests: Sequence[Request]) -> int:
    """Take requests back that no controller has taken yet; returns how many had been."""
    from prompttuner.slurm.spool import Spool

    spool, taken = Spool(settings.spool_dir), 0
    for request in requests:
        try:
            spool.request(request.id).unlink()
        except FileNotFoundError:
            taken += 1
    return taken


def _collect(settings: Settings, requests: Sequence[R], wait_s: float) -> list[Answer[R]]:
    from prompttuner.slurm.spool import Spool

    spool = Spool(settings.spool_dir)
    end = time.monotonic() + wait_s
    answers: dict[str, Answer[R]] = {}
    while True:
        for request in requests:
            if request.id in answers:
                continue
            reply = understood(read_message(Reply, spool.reply(request.id)))
            if reply is not None:
                answers[request.id] = Answer(request, True, reply.ok, reply.message)
        if len(answers) == len(requests) or time.monotonic() >= end:
            break
        time.sleep(LOOK_S)
    return [answers.get(request.id, Answer(request, False, False, "")) for request in requests]
