"""The agent's side of the zygote: start it, send it requests, hear its events; never blocks, imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from prompttuner.errors import ModelError
from prompttuner.protocol.zygote import ZygoteEvent, ZygoteRequest

__all__ = ["Zygote"]

MAX_PENDING = 1 << 20
"""Bytes of one event line; a longer one is not from our zygote."""
SEND_TIMEOUT_S = 5.0
"""A zygote that does not take a request of some hundred bytes for so long is stuck: its socket buffer is full."""

THREAD_ENV = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""A process with threads can not be forked safely, so the zygote has one. Workers may have more: see ``zygote``."""


class Zygote:
    """A zygote process and the socket to it. One lease runs at a time; requests are answered by events of ``poll``.

    Events are those of docs/architecture.md, "Agent and zygote": ``ready``, ``loaded``, ``load_failed``,
    ``lease_started``, ``lease_ended``; plus ``gone`` (with its exit code) once, when the zygote itself has ended. A
    lease that ran then counts as crashed. A zygote that is gone can be replaced with :meth:`start`.
    """

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self._pending = b""
        self._gone = False

    @classmethod
    def start(cls, log_path: Path, env: Mapping[str, str] | None = None) -> Zygote:
        """Start a zygote whose output is appended to ``log_path``; it sends ``ready`` when everything is imported.

        ``env`` is added to this process's environment (``PROMPTTUNER_ELASTIC``, ``HF_HUB_OFFLINE``, ...).
        """
        ours, theirs = socket.socketpair()
        try:
            log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "prompttuner.worker.zygote.server", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs.fileno(),),
                    env={**os.environ, **THREAD_ENV, **(env or {})},
                    start_new_session=True,
                )
            finally:
                os.close(log)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(process, ours)

    @property
    def pid(self) -> int:
        """Process id of the zygote."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False once the zygote has ended (its last events may still wait in ``poll``)."""
        return not self._gone and self._process.poll() is None

    def fileno(self) -> int:
        """For select: readable when ``poll`` has events."""
        return self._channel.fileno()

    def load(self, model: str, dtype: str = "auto", trust_remote_code: bool = False) -> None:
        """Ask for a model to be made resident. Answer: ``loaded`` or ``load_failed``."""
        self._send(ZygoteRequest(op="load", model=model, dtype=dtype, trust_remote_code=trust_remote_code))

    def lease(self, job_dir: Path, agent: str, generation: int, address: str) -> None:
        """Ask to work for a job. Answer: ``lease_started``, later ``lease_ended``."""
        self._send(ZygoteRequest(op="lease", job_dir=str(job_dir), agent=agent, generation=generation, address=address))

    def idle_work(self, bank_dir: Path, model: str) -> None:
        """Let it compute what the Prompt Bank lacks for this LLM until the next lease comes; there is no answer."""
        self._send(ZygoteRequest(op="idle_work", bank_dir=str(bank_dir), model=model))

    def end_lease(self) -> None:
        """Ask the lease to checkpoint and leave at its next step boundary."""
        self._send(ZygoteRequest(op="end_lease"))

    def kill_lease(self) -> None:
        """Kill the lease's processes at once."""
        self._send(ZygoteRequest(op="kill_lease"))

    def exit(self, timeout_s: float = 10.0) -> None:
        """End the zygote; its lease, if any, is asked to leave first. Kills what is left after ``timeout_s``."""
        with contextlib.suppress(ModelError):
            self._send(ZygoteRequest(op="exit"))
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            # The whole session: a zygote that is stuck may have a lease that would go on without it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
        self._channel.close()
        self._gone = True

    def poll(self) -> list[ZygoteEvent]:
        """Events since the last call, without waiting."""
        if self._gone:
            return []
        ended = False
        while True:
            try:
                chunk = self._channel.recv(65536)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                chunk = b""
            if not chunk:
                ended = True
                break
            self._pending += chunk
        lines = self._pending.split(b"\n")
        self._pending = lines.pop()
        if len(self._pending) > MAX_PENDING:
            self._process.kill()
            ended = True
        events = [ZygoteEvent.expect(json.loads(line)) for line in lines if line.strip()]
        if ended:
            self._gone = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 15)
            try:
                code: int | None = self._process.wait(1.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
            self._channel.close()
            events.append(ZygoteEvent(ev="gone", code=code))
        return events

    def _send(self, request: ZygoteRequest) -> None:
        """Raises ModelError when the zygote is gone or stuck."""
        if self._gone:
            raise ModelError("the zygote has ended; start another")
        data = (json.dumps(request.to_json()) + "\n").encode()
        deadline = time.monotonic() + SEND_TIMEOUT_S
        try:
            while data:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([], [self._channel], [], left)[1]:
                    raise TimeoutError(f"it took no request for {SEND_TIMEOUT_S:g} s")
                data = data[self._channel.send(data) :]
        except OSError as error:
            raise ModelError(f"the zygote does not answer ({error}); see its log, and start another") from error
