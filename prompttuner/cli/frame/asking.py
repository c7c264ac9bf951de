"""Asking the controller from the command line: warnings and what still has to be done go to standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

from prompttuner.cli.frame import context
from prompttuner.client.asking import Answer
from prompttuner.client.client import Client
from prompttuner.protocol.requests import Request
from prompttuner.words import Counted

__all__ = ["ask", "client", "tell"]

R = TypeVar("R", bound=Request)


def ask(requests: Sequence[R]) -> list[Answer[R]]:
    """See :meth:`prompttuner.client.client.Client.ask`."""
    return client().ask(requests)


def client() -> Client:
    """The client of this command line."""
    return Client(context.settings(), warn=lambda text: _say(f"warning: {text}"))


def tell(answers: Sequence[Answer[R]]) -> None:
    """Say what still has to be done for requests that were not yet applied."""
    waiting = [answer for answer in answers if not answer.applied]
    if waiting:
        _say(
            f"note: {Counted(len(waiting), 'request')} left in the inbox ({waiting[0].request.id}); the controller "
            "applies what is there at its next tick"
        )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
