"""The process that runs leases: forked from the zygote for one lease, or on a GPU for many. One end of it is here."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Worker", "fork_worker"]

PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Run(Protocol):
    """What a worker does with a lease request: returns the ``lease_ended`` event less its name."""

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]: ...


class Worker:
    """The zygote's handle of a worker process."""

    def __init__(self, pid: int, channel: socket.socket, resident: bool) -> None:
        self.pid = pid
        self.channel = channel
        self.resident = resident
        self.busy = not resident
        self._pending = b""

    def send(self, request: dict[str, Any]) -> None:
        """Give a resident worker its next lease."""
        self.busy = True
        self.channel.sendall((json.dumps(request) + "\n").encode())

    def receive(self) -> dict[str, Any] | None:
        """The end of a lease as the worker tells it, if a whole line has come; reads once, may raise EOFError."""
        chunk = self.channel.recv(65536)
        if not chunk:
            raise EOFError
        self._pending += chunk
        line, newline, rest = self._pending.partition(b"\n")
        if not newline:
            return None
        self._pending = rest
        value: dict[str, Any] = json.loads(line)
        return value

    def signal(self, number: int) -> None:
        """Send a signal to the worker alone (its own children are its affair)."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the worker and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for the process, which has closed its channel or been killed; its exit code, negative for a signal."""
        self.channel.close()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def fork_worker(prepare: Callable[[], Run], request: dict[str, Any] | None, inherited: list[int]) -> Worker:
    """Fork a worker that runs ``request`` and ends, or, given None, that stays and runs what it is sent.

    ``prepare`` is called in the child and returns what runs a lease. ``inherited`` are descriptors of the zygote
    that the child must close, lest the agent never sees the zygote's end of the socket close. Signals are blocked
    around the fork, so that none is lost between the fork and the child's handlers.
    """
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        theirs.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)  # here and in the child: whoever is first, kill() finds the group
        return Worker(pid, ours, resident=request is None)
    code = 1
    try:
        ours.close()
        _become_child(parent, inherited)
        _serve(prepare(), request, theirs)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become_child(parent: int, inherited: list[int]) -> None:
    for fd in inherited:
        os.close(fd)
    os.setpgid(0, 0)
    # A worker whose zygote dies checkpoints and leaves.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    # The handlers of a lease replace these; a resident worker between leases has nothing to save.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _serve(run: Run, request: dict[str, Any] | None, channel: socket.socket) -> None:
    if request is not None:
        channel.sendall((json.dumps(run(request)) + "\n").encode())
        return
    with channel.makefile("rb") as lines:
        for line in lines:
            channel.sendall((json.dumps(run(json.loads(line))) + "\n").encode())
