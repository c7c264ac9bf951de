"""The ways to tell somebody: a command, a webhook, mail. Each within a few seconds, whatever it does."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from http.client import HTTPException
from typing import Any

from prompttuner.config.mask import mask_url
from prompttuner.errors import ConfigError
from prompttuner.protocol.wire import Message

__all__ = ["HOOKS", "HookBody", "run_hook"]


@dataclass(frozen=True, slots=True)
class HookBody(Message):
    """What a hook is told of a deadline."""

    event: str
    job: str
    name: str = ""
    owner: str = ""
    deadline: str | None = None
    """ISO time."""
    step: int = 0
    state: str = ""
    note: str | None = None


HOOK_S = 5.0
"""Longest wait for one hook: the tick waits meanwhile."""


def run_hook(name: str, setting: str, body: HookBody) -> str | None:
    """Run one hook.

    Args:
        name: of the setting, one of ``HOOKS``.
        setting: its value.
        body: what to tell.

    Returns:
        None if it was told, else what went wrong; nothing is raised.
    """
    try:
        HOOKS[name](setting, body)
    except subprocess.CalledProcessError as error:  # its own words hold the whole command, tokens and all
        return f"it ended with exit status {error.returncode}"
    except (subprocess.TimeoutExpired, TimeoutError):
        return f"it did not end within {HOOK_S:g} seconds"
    except (OSError, HTTPException, ValueError, ConfigError) as error:
        secret = setting.partition("://")[2].partition("/")[2] if name == "webhook" else ""  # its path usually is one
        return str(error).replace(secret, "***") if secret else str(error)
    return None


def _command(command: str, body: HookBody) -> None:
    _call(shlex.split(command), json.dumps(body.to_json()).encode())


def _call(command: Sequence[str], text: bytes) -> None:
    """Run a program in a session of its own; its standard error goes to ours, which is the log, its output nowhere.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be run, fails, or takes too long and is ended with its children.
    """
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            process.communicate(text, timeout=HOOK_S)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Followed, a POST becomes a GET that tells nothing."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _webhook(url: str, body: HookBody) -> None:
    if not url.startswith(("https://", "http://")):
        raise ConfigError(f"webhook {mask_url(url)} must begin with https:// or http://")
    data = json.dumps(body.to_json()).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")  # noqa: S310
    opener = urllib.request.build_opener(_NoRedirects)

    def post() -> None:
        with opener.open(request, timeout=HOOK_S):
            pass

    _in_time(post)


def _in_time(call: Callable[[], None]) -> None:
    """Run ``call`` in a thread: a socket's time-out bounds neither looking a name up nor an answer in drops.

    Raises:
        TimeoutError: it has not ended in time, and is left alone; else whatever it raises.
    """
    caught: list[Exception] = []

    def target() -> None:
        try:
            call()
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(HOOK_S)
    if thread.is_alive():
        raise TimeoutError
    if caught:
        raise caught[0]


def _mail(address: str, body: HookBody) -> None:
    program = shutil.which("sendmail") or shutil.which("sendmail", path="/usr/sbin:/usr/lib")
    if program is None:
        raise ConfigError("`mail` is set, but this host has no sendmail; use `command_hook` or `webhook`")
    mail = EmailMessage()
    mail["To"] = address
    mail["Subject"] = f"prompttuner: {body.event} {body.name or body.job}"
    mail.set_content("\n".join(f"{key}: {value}" for key, value in body.to_json().items()))
    _call([program, "-t", "-oi"], mail.as_bytes())


HOOKS: Mapping[str, Callable[[str, HookBody], None]] = {
    "command_hook": _command,
    "webhook": _webhook,
    "mail": _mail,
}
"""By the name of its setting."""
