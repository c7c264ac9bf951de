"""One user's prompttuner on a fake site: real controller, store, spool, agents and policy, virtual time."""

from __future__ import annotations

import functools
import itertools
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any
from unittest import mock

from fake_site import FakeSite

from prompttuner.config import Settings
from prompttuner.controller.requests import leave
from prompttuner.controller.resources import Clock, Resources, State, Warnings
from prompttuner.controller.tick import Controller
from prompttuner.controller.tick_report import TickReport
from prompttuner.db import OwnerInfo, Ownership, Store
from prompttuner.db.queries import jobs
from prompttuner.db.tables.models import Job
from prompttuner.files import read_json, write_bytes, write_json
from prompttuner.policy import get as get_policy
from prompttuner.protocol.requests import NewJob, Request, Submit, read_request
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.slurm.spool import Spool

__all__ = ["DEAD_PID", "Lab", "scratch_root"]

DEAD_PID = 2**22 + 1
"""Above the kernel's largest pid: an owner of that pid is proved dead, so the next controller takes over at once."""


def scratch_root(fallback: Path) -> Path:
    """A folder in memory where there is one: these tests sync hundreds of small files."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else fallback


@functools.cache
def empty_state() -> bytes:
    """The file of a database that has just been made: Alembic takes longer than a short example."""
    with tempfile.TemporaryDirectory(dir=scratch_root(Path(tempfile.gettempdir()))) as folder:
        path = Path(folder) / "state.db"
        Store.open(path, create=True).close()
        return path.read_bytes()


_COMPILED: dict[Any, Any] = {}
_DIALECTS: list[Any] = []


def share_compiled_statements(store: Store) -> None:
    """One cache of compiled SQL for all stores of this process: else each new controller compiles every statement."""
    _DIALECTS[:] = _DIALECTS or [store.engine.dialect]
    for engine in (store._readers, store._writers):
        engine.dialect = _DIALECTS[0]
        engine.update_execution_options(compiled_cache=_COMPILED)


class Lab:
    """``time`` is the site's; ``tick`` is one controller tick; ``crash`` forgets the controller without a farewell."""

    def __init__(self, root: Path, policy: str = "edf", **settings: Any) -> None:
        defaults: dict[str, Any] = {"home": root / "home", "idle_limit_s": 60.0, "squeue_min_s": 0.0}
        self.settings = Settings(**{**defaults, **settings})
        self.settings.make_home()
        write_bytes(self.settings.home / "state.db", empty_state())
        self.site = FakeSite(root)
        self.policy = policy
        self.spool = Spool(self.settings.spool_dir).ensure()
        self._names = itertools.count(1)
        self._luck = mock.patch.object(uuid, "uuid4", self._next_uuid)
        self._luck.start()  # the same rules then always lead to the same run
        self.controller = self.start_controller()

    def start_controller(self) -> Controller:
        store = Store.open(self.settings.database_url, create=True, notes_dir=self.settings.home)
        share_compiled_statements(store)
        here = OwnerInfo.of_this_process("test")
        info = OwnerInfo(here.host, DEAD_PID, "test", here.machine, "1")
        clock = Clock(lambda: self.site.time, lambda: self.site.time)
        state = State(store, store.acquire(info, ttl_s=30.0))
        resources = Resources(self.settings, self.spool, state, clock, Warnings(clock.steady))
        return Controller(resources, self.site, get_policy(self.policy))

    @property
    def state(self) -> State:
        """The rows, and the right to write them."""
        return self.controller.state

    @property
    def store(self) -> Store:
        return self.state.store

    @property
    def ownership(self) -> Ownership:
        return self.state.ownership

    @property
    def warnings(self) -> Warnings:
        return self.controller.resources.warnings

    def crash(self) -> None:
        """The controller is gone; a new one takes over, with the settings as they are now."""
        self.store.close()
        self.controller = self.start_controller()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.store.close()
        self._luck.stop()

    def _next_uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self.site.random.getrandbits(128), version=4)

    def submit(self, ita: int = 50, deadline_s: float | None = 600.0, **spec: Any) -> str:
        """Leave a submit request for a fake job that needs ``ita`` iterations."""
        job_id = f"j{next(self._names):09}"
        now = self.site.time
        value = {
            "model": "/models/tiny",
            "model_name": "tiny",
            "train_sha256": "0" * 64,
            "target": {"metric": "loss", "op": "<=", "value": 0.1},
            "max_iterations": 400,
            "eval_every": 10,
            "batch_size": 8,
            "initial_prompt": "vocab",
            "max_gpus": 2,
            "submitted_at": now,
            "deadline_at": None if deadline_s is None else now + deadline_s,
            "note": json.dumps({"ita": ita, "prompt": f"prompt of {job_id}"}),
            **spec,
        }
        leave(self.settings, Submit(jobs=(NewJob(job=job_id, spec=ResolvedSpec.expect(value)),), at=now))
        return job_id

    def ask(self, kind: str, **body: Any) -> dict[str, Any]:
        """Leave a request, tick, and return its reply."""
        name = self.leave(kind, **body)
        self.tick()
        reply: dict[str, Any] = read_json(self.spool.reply(name))
        return reply

    def leave(self, kind: str, **body: Any) -> str:
        """Leave a request, also one that no class would make; returns its id."""
        value = {"kind": kind, "at": self.site.time, **body}
        request = read_request(value)
        if isinstance(request, Request):
            return leave(self.settings, request)
        name = uuid.uuid4().hex
        write_json(self.spool.request(name), {"id": name, "by": "test", **value})
        return name

    def tick(self) -> TickReport:
        return self.controller.tick()

    def run(self, seconds: float, every: float = 1.0) -> None:
        """Let the site and the controller go on together."""
        for _ in range(int(seconds / every)):
            self.site.step(every)
            self.tick()

    def pass_days(self, days: float) -> None:
        """Time goes by with a tick a day or two: a clock that jumps further is doubted."""
        end = self.site.time + days * 86400
        while self.site.time < end:
            self.site.time = min(self.site.time + 2 * 86400, end)
            self.tick()

    def job(self, job_id: str) -> Job:
        return self.store.query(lambda session: jobs.get(session, job_id))
