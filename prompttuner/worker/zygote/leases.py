"""The process that runs leases: forked from the zygote for one lease, or on a GPU for many. One end of it is here."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Protocol

from prompttuner.protocol.zygote import Told, ZygoteRequest

__all__ = ["Worker", "fork_worker"]

PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Run(Protocol):
    """What a worker does with a request: of a lease it returns the ``lease_ended`` event less its name.

    ``waiting`` tells whether another request has come, for work that gives way to a lease.
    """

    def __call__(self, request: ZygoteRequest, waiting: Callable[[], bool]) -> Told: ...


class Worker:
    """The zygote's handle of a worker process."""

    def __init__(self, pid: int, channel: socket.socket, resident: bool) -> None:
        self.pid = pid
        self.channel = channel
        self.resident = resident
        self.busy = not resident
        """It has a lease."""
        self.idling = False
        """A resident worker that was given idle work and has not said yet that it ended."""
        self._pending = b""

    def send(self, request: ZygoteRequest) -> None:
        """Give a resident worker its next lease; it leaves idle work for it."""
        self.busy = True
        self._send(request)

    def send_idle(self, request: ZygoteRequest) -> None:
        """Give a resident worker something to do until its next lease."""
        self.idling = True
        self._send(request)

    def _send(self, request: ZygoteRequest) -> None:
        self.channel.sendall((json.dumps(request.to_json()) + "\n").encode())

    def receive(self) -> list[Told]:
        """What the worker tells of ended leases and idle work, whole lines only; reads once, may raise EOFError."""
        chunk = self.channel.recv(65536)
        if not chunk:
            raise EOFError
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        return [Told.expect(json.loads(line)) for line in lines]

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


def fork_worker(prepare: Callable[[], Run], request: ZygoteRequest | None, inherited: list[int]) -> Worker:
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


def _serve(run: Run, request: ZygoteRequest | None, channel: socket.socket) -> None:
    requests = _Requests(channel)
    if request is not None:
        channel.sendall((json.dumps(run(request, requests.waiting).to_json()) + "\n").encode())
        return
    while (told := requests.next()) is not None:
        channel.sendall((json.dumps(run(told, requests.waiting).to_json()) + "\n").encode())


class _Requests:
    """Lines of a socket, with a way to see whether one is waiting."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._pending = b""

    def next(self) -> ZygoteRequest | None:
        """The next request; None when the other end has closed."""
        while b"\n" not in self._pending:
            chunk = self._channel.recv(65536)
            if not chunk:
                return None
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return ZygoteRequest.expect(json.loads(line))

    def waiting(self) -> bool:
        """Whether something has come (or the other end has closed)."""
        return bool(self._pending or select.select([self._channel], [], [], 0)[0])
