"""Asking for a change: a request file in the spool's inbox, then an own tick, then the controller's answer."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prompttuner.errors import BackendError, NotOwner, PromptTunerError, StateError
from prompttuner.files import read_json
from prompttuner.words import Counted

if TYPE_CHECKING:
    from prompttuner.config import Settings

__all__ = ["Answer", "ask", "ask_all", "make_request", "tell"]

ANSWER_WAIT_S = 10.0
"""A running controller answers within a tick; a longer silence is reported, and the request stays in the inbox."""
LOOK_S = 0.1
AGAIN_S = 1.0
"""An unanswered request is tried by a tick of our own this often: the owner may have been a command that has ended."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    request: dict[str, Any]
    applied: bool
    """False: it lies in the inbox, and the next tick of whoever is the controller applies it."""
    ok: bool
    message: str


def make_request(kind: str, **args: Any) -> dict[str, Any]:
    """A request with its id, so that its answer can be found; the rest is filled in when it is left."""
    return {"id": uuid.uuid4().hex, "kind": kind, **args}


def ask(settings: Settings, kind: str, **args: Any) -> Answer:
    """Leave one request, see ``ask_all``; a refusal is raised.

    Raises:
        StateError: the controller refused; the message says why.
    """
    answer = ask_all(settings, [make_request(kind, **args)])[0]
    if answer.applied and not answer.ok:
        raise StateError(answer.message)
    return answer


def ask_all(settings: Settings, requests: Sequence[dict[str, Any]]) -> list[Answer]:
    """Leave requests, try to be the controller for one tick, and collect the answers.

    Raises:
        SpoolError: the inbox cannot be written; what was left before stays valid.
        DatabaseError: the database cannot be used; found out before anything is left.
    """
    from prompttuner.cli.state.reading import open_store
    from prompttuner.controller.requests import leave

    store = open_store()
    if store is not None:
        store.close()
    for request in requests:
        leave(settings, request)
    end = time.monotonic() + ANSWER_WAIT_S
    while not _try_tick(settings) and time.monotonic() < end:
        answers = _collect(settings, requests, min(AGAIN_S, end - time.monotonic()))
        if all(answer.applied for answer in answers):
            return answers
    return _collect(settings, requests, 0.0)


def tell(answers: Sequence[Answer]) -> None:
    """Say on standard error what still has to be done for requests that were not yet applied."""
    waiting = [answer for answer in answers if not answer.applied]
    if waiting:
        sys.stderr.write(
            f"note: {Counted(len(waiting), 'request')} left in the inbox ({waiting[0].request['id']}); the controller "
            "applies what is there at its next tick\n"
        )


def _try_tick(settings: Settings) -> bool:
    """One tick of our own; False when somebody else is the controller or the tick failed (the requests stay)."""
    from prompttuner.controller.run import tick_once

    try:
        tick_once(settings)
    except NotOwner:
        return False
    except BackendError as error:
        sys.stderr.write(f"warning: {error}; the next tick tries again\n")
    except PromptTunerError as error:
        error.args = (f"{error} (the request stays in the inbox and is applied once this is mended)",)
        raise
    return True


def _collect(settings: Settings, requests: Sequence[dict[str, Any]], wait_s: float) -> list[Answer]:
    from prompttuner.slurm.spool import Spool

    spool = Spool(settings.spool_dir)
    end = time.monotonic() + wait_s
    answers: dict[str, Answer] = {}
    while True:
        for request in requests:
            if request["id"] in answers:
                continue
            reply = read_json(spool.reply(request["id"]))
            if isinstance(reply, dict):
                ok, message = bool(reply.get("ok")), str(reply.get("message", ""))
                answers[request["id"]] = Answer(request, True, ok, message)
        if len(answers) == len(requests) or time.monotonic() >= end:
            break
        time.sleep(LOOK_S)
    return [answers.get(request["id"], Answer(request, False, False, "")) for request in requests]
