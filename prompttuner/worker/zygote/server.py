"""The zygote: has imported everything, holds frozen models in host memory, forks workers; one thread, no CUDA.

``python -m prompttuner.worker.zygote.server FD`` with the agent's socket as FD; see docs/architecture.md,
"Agent and zygote".
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prompttuner.errors import PromptTunerError
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.zygote import Told, ZygoteEvent, ZygoteRequest
from prompttuner.spec.models import trusts_own_code
from prompttuner.worker.zygote.leases import SIGNALS, Run, Worker, fork_worker

if TYPE_CHECKING:
    from prompttuner.engine.llm.model import LoadedModel
    from prompttuner.worker.paced.model import PacedModel

__all__ = ["main"]

LEAVE_S = 20.0
"""So long may a lease take to checkpoint and leave when the zygote is told to exit."""
IDLE_NICE = 10
HOST_SHARE = 0.5
"""Share of the memory that was available at start which resident models may take together."""

ModelKey = tuple[str, str, bool]
"""All that decides what the weights in memory are: model, their type (never ``auto``), whether its own code ran."""
PROBED = ("torch.float32", "torch.bfloat16", None)
"""Exit codes of the child that looks for a CUDA device."""


class Zygote:
    """Serves one agent until its socket closes or it says ``exit``."""

    def __init__(self, channel: socket.socket, settings: ElasticSettings, cuda: str | None) -> None:
        """``cuda``: type of weights for the CUDA device, None without one."""
        self._channel = channel
        self._settings = settings
        self._cuda = cuda
        self._resident = cuda is not None or settings.resident
        self._models: dict[ModelKey, LoadedModel | PacedModel] = {}
        self._budget = _memory_available() * HOST_SHARE
        self._worker: Worker | None = None
        self._idler: Worker | None = None
        """Works for the bank while there is no lease; killed when one comes."""
        self._worker_model: ModelKey | None = None
        self._pending = b""
        self._more_waits = False
        """The agent has asked for more than what is being done."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ)

    def serve(self) -> None:
        """Answer requests until the agent goes."""
        self._send(ZygoteEvent(ev="ready", pid=os.getpid()))
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._channel:
                    if not self._hear_agent():
                        self._leave()
                        return
                elif self._worker is not None and key.fileobj is self._worker.channel:
                    self._hear_worker(self._worker)
                elif self._idler is not None and key.fileobj is self._idler.channel:
                    self._stop_idle_work()

    def _send(self, event: ZygoteEvent) -> None:
        with contextlib.suppress(OSError):  # the agent has gone: the next receive says so
            self._channel.sendall((json.dumps(event.to_json()) + "\n").encode())

    def _hear_agent(self) -> bool:
        """Read and carry out requests; False when it is time to end."""
        try:
            chunk = self._channel.recv(65536)
        except OSError:
            return False
        if not chunk:
            return False
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for left, line in zip(range(len(lines) - 1, -1, -1), lines, strict=True):
            request = ZygoteRequest.expect(json.loads(line))
            op = request.op
            self._more_waits = left > 0
            if op == "load":
                self._load(request)
            elif op == "lease":
                self._stop_idle_work()
                self._lease(request)
            elif op == "idle_work":
                self._start_idle_work(request)
            elif op == "exit":
                return False
            elif self._worker is not None and self._worker.busy:
                if op == "end_lease":
                    self._worker.signal(signal.SIGTERM)
                elif op == "kill_lease":
                    self._worker.kill()
        return True

    # -- models ------------------------------------------------------------------------------------------------

    def _load(self, request: ZygoteRequest) -> None:
        key = self._key(request.model, request.dtype, request.trust_remote_code)
        first = not self._models
        try:
            seconds = self._make_resident(key)
            seconds += self._pace_load(self._models[key], first)
        except (PromptTunerError, OSError, RuntimeError, ValueError, ImportError, MemoryError) as error:
            traceback.print_exc()
            said = str(error) or type(error).__name__
            self._send(ZygoteEvent(ev="load_failed", model=key[0], error=said, kind=_whose(error)))
            return
        size = self._models[key].bytes
        names = [name for name, _, _ in self._models]
        # One thread, or a fork could copy a lock that nobody in the child will ever release.
        threads = len(list(Path("/proc/self/task").iterdir()))
        self._send(
            ZygoteEvent(ev="loaded", model=key[0], seconds=seconds, bytes=size, models=tuple(names), threads=threads)
        )

    def _make_resident(self, key: ModelKey) -> float:
        """Load a model unless it is there already, dropping the least recently used ones for room; seconds it took."""
        from prompttuner.worker.paced.model import read_paced_model

        begin = time.monotonic()
        if key in self._models:
            self._models[key] = self._models.pop(key)
        else:
            model = read_paced_model(key[0]) or self._load_weights(key)
            room = self._budget - model.bytes
            while self._models and sum(held.bytes for held in self._models.values()) > room:
                del self._models[next(iter(self._models))]
            self._models[key] = model
            # What is alive now lives on: kept out of the collector, its pages stay shared with the workers.
            gc.collect()
            gc.freeze()
        if self._resident and self._worker_model != key:
            self._drop_resident()
            self._start_resident(key)
        return time.monotonic() - begin

    def _load_weights(self, key: ModelKey) -> LoadedModel:
        """What a model needs is imported with the first one: an agent of paced jobs never does."""
        import transformers

        # Progress bars would start a thread that watches them.
        import_module("tqdm").tqdm.monitor_interval = 0
        transformers.utils.logging.disable_progress_bar()
        import prompttuner.bank.idle.work
        import prompttuner.bank.lookup.search  # noqa: F401 - workers need both; imported once, here
        from prompttuner.engine.llm.model import load_model

        # On a GPU the probe runs where it is quick, once the worker has moved the model there.
        return load_model(key[0], key[1], (key[0],) if key[2] else (), probed=self._cuda is None)

    def _pace_load(self, model: LoadedModel | PacedModel, first: bool) -> float:
        """Sleep where a paced model would be loaded, until the agent asks for something (then for the end)."""
        from prompttuner.worker.paced.model import PacedModel

        if not isinstance(model, PacedModel) or self._more_waits:
            return 0.0
        begin = time.monotonic()
        select.select([self._channel], [], [], model.load_left_s(first))
        return time.monotonic() - begin

    # -- workers -----------------------------------------------------------------------------------------------

    def _adopt(self, worker: Worker, key: ModelKey) -> None:
        self._worker, self._worker_model = worker, key
        self._selector.register(worker.channel, selectors.EVENT_READ)

    def _prepare(self, key: ModelKey) -> Run:
        """In the child: what runs a lease, with the model in place (on a GPU: on the device)."""
        from prompttuner.worker.lease import run_lease

        for loaded in [k for k in self._models if k != key]:
            del self._models[loaded]  # the child's reference only
        model: Any = self._models[key]
        if self._cuda is not None:
            model = model.to("cuda")
            _probe_model(model)
        settings = replace(self._settings, way="in_place") if self._resident else self._settings

        def run(request: ZygoteRequest, waiting: Callable[[], bool]) -> Told:
            if request.op == "idle_work":
                return _idle_work(request, model, waiting)
            end = run_lease(
                Path(request.job_dir),
                agent=request.agent,
                generation=request.generation,
                address=request.address,
                model=model,
                settings=settings,
            )
            return Told(outcome=end.outcome, code=0, error=end.error, generation=end.generation)

        return run

    def _start_idle_work(self, request: ZygoteRequest) -> None:
        """Let a child of its own, or the resident worker, do what the bank lacks; not beside a lease."""
        if self._idler is not None or not self._models or (self._worker and (self._worker.busy or self._worker.idling)):
            return
        from prompttuner.worker.paced.model import PacedModel

        model = self._models[next(reversed(self._models))]
        if isinstance(model, PacedModel):
            return  # nothing to compute with
        if self._resident:
            if self._worker is not None and self._worker_model is not None:
                self._worker.send_idle(request)
            return

        def prepare() -> Run:
            os.nice(IDLE_NICE)
            return lambda request, _: _idle_work(request, model, lambda: False)

        self._idler = fork_worker(prepare, request, self._inherited())
        self._selector.register(self._idler.channel, selectors.EVENT_READ)

    def _stop_idle_work(self) -> None:
        """End and reap the idle child, done or not: all that it writes is replaced atomically, so a kill is safe.

        The resident worker, which holds the model, is not killed: it sees the lease and leaves after its present step.
        """
        if self._idler is not None:
            self._selector.unregister(self._idler.channel)
            self._idler.kill()
            self._idler.reap()
            self._idler = None

    def _start_resident(self, key: ModelKey) -> None:
        self._adopt(fork_worker(lambda: self._prepare(key), None, self._inherited()), key)

    def _drop_resident(self) -> None:
        if self._worker is not None and not self._worker.busy:
            self._forget_worker(self._worker, kill=True)

    def _inherited(self) -> list[int]:
        return [self._channel.fileno(), self._selector.fileno()]

    def _lease(self, request: ZygoteRequest) -> None:
        if self._worker is not None and self._worker.busy:
            self._end(Told(outcome="failed", error="this zygote has a lease already"))
            return
        try:
            key = self._model_of(Path(request.job_dir))
            if key not in self._models or (self._resident and self._worker_model != key):
                self._make_resident(key)
            if self._resident and self._worker is not None:
                self._worker.send(request)
            else:
                self._adopt(fork_worker(lambda: self._prepare(key), request, self._inherited()), key)
        except (PromptTunerError, OSError, RuntimeError, ValueError, MemoryError) as error:
            traceback.print_exc()
            self._end(Told(outcome="failed", error=str(error) or type(error).__name__))
            return
        assert self._worker is not None
        self._send(ZygoteEvent(ev="lease_started", pid=self._worker.pid))

    def _model_of(self, job_dir: Path) -> ModelKey:
        """The model that a job's spec asks for, type of weights and trusted code included, resident or not."""
        from prompttuner.worker.lease import read_spec

        spec = read_spec(job_dir)
        return self._key(spec.model, spec.dtype, trusts_own_code(spec))

    def _key(self, model: str, dtype: str, trusted: bool) -> ModelKey:
        """``auto`` is the type that this host's device computes best in, as `choose_dtype` says."""
        return model, (self._cuda or "float32") if dtype == "auto" else dtype, trusted

    def _hear_worker(self, worker: Worker) -> None:
        try:
            lines = worker.receive()
        except (EOFError, OSError):
            self._forget_worker(worker)
            return
        for told in lines:
            if told.idle_work is not None:
                worker.idling = False
                continue
            worker.busy = False
            if not worker.resident:
                self._forget_worker(worker, told=told)
            else:
                self._end(told)

    def _forget_worker(self, worker: Worker, *, kill: bool = False, told: Told | None = None) -> None:
        """Reap a worker whose channel closed or whose lease ended, and say so if it had a lease."""
        self._selector.unregister(worker.channel)
        self._worker = self._worker_model = None
        if kill:
            worker.kill()
        code = worker.reap()
        if told is not None:
            self._end(told)
        elif worker.busy:
            why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            self._end(Told(outcome="crashed", code=code, error=f"the worker was {why}"))

    def _end(self, told: Told) -> None:
        self._send(
            ZygoteEvent(
                ev="lease_ended", outcome=told.outcome, code=told.code, error=told.error, generation=told.generation
            )
        )

    def _leave(self) -> None:
        """Let the lease checkpoint and leave, then end."""
        self._stop_idle_work()
        worker = self._worker
        if worker is None:
            return
        worker.signal(signal.SIGTERM)
        self._selector.unregister(self._channel)
        deadline = time.monotonic() + LEAVE_S
        while self._worker is not None and self._worker.busy and time.monotonic() < deadline:
            if self._selector.select(max(0.0, deadline - time.monotonic())):
                self._hear_worker(worker)
        if self._worker is not None:
            self._forget_worker(worker, kill=True)


def _whose(error: Exception) -> Literal["job", "site", "host"]:
    """Whose fault a load is: ``job`` (its model), ``site`` (files that cannot be read now) or ``host`` (memory)."""
    if isinstance(error, MemoryError):
        return "host"
    absent = isinstance(error, FileNotFoundError | NotADirectoryError)
    unread = isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno is not None)
    return "site" if unread and not absent else "job"


def _idle_work(request: ZygoteRequest, model: LoadedModel, should_stop: Callable[[], bool]) -> Told:
    """In a worker: work for the bank until it is done or has to stop; a failure costs nothing but that work."""
    from prompttuner.bank.idle.work import idle_work

    try:
        done = idle_work(Path(request.bank_dir), model, should_stop, request.model)
    except Exception:
        traceback.print_exc()
        return Told(idle_work="failed")
    finally:
        if model.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()  # the lease shall find the memory that it left
    return Told(idle_work="done", features=done.features, trials=done.trials)


def _probe_model(model: LoadedModel | PacedModel) -> None:
    """On the device: a model that no prompt can be tuned on is refused by each job's lease, in error.json."""
    from prompttuner.engine.llm.causality import probe
    from prompttuner.worker.paced.model import PacedModel

    if not isinstance(model, PacedModel):
        try:
            probe(model)
        except PromptTunerError as error:
            model.refusal = str(error)


def _memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 33


def _probe_cuda() -> str | None:
    """The best type of weights for this host's CUDA device, None without one.

    Asked in a child: a process that has touched CUDA can not be forked.
    """
    pid = os.fork()
    if pid == 0:
        code = PROBED.index(None)
        try:
            import torch

            from prompttuner.engine.llm.model import choose_dtype

            if torch.cuda.is_available() and torch.cuda.device_count() > 0:
                code = PROBED.index(str(choose_dtype("auto", torch.device("cuda", 0))))
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    told = PROBED[code] if 0 <= code < len(PROBED) else None
    return None if told is None else told.removeprefix("torch.")


def main(fd: int) -> None:
    """Import, then serve the agent at the other end of the socket ``fd``."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the agent decides; it gets the same signals
    settings = ElasticSettings.from_env()
    import torch

    torch.set_num_threads(1)
    import torch.distributed

    import prompttuner.worker.lease
    import prompttuner.worker.paced.model  # noqa: F401

    with socket.socket(fileno=fd) as channel:
        Zygote(channel, settings, _probe_cuda()).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
