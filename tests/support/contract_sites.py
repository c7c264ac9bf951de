"""Two sites for the same scenarios: the fake Slurm in virtual time, and the throw-away cluster in real time.

A scenario talks to ``backend`` alone; the rest is what users, operators and bad luck do to a site.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import slurm_entry
from fake_slurm import FakeAllocation, FakeSlurm
from slurm_cluster import Cluster

from prompttuner.config import Settings, SlurmSettings
from prompttuner.files import make_private_dir
from prompttuner.slurm.backend import AllocationRequest, Backend, Seen
from prompttuner.slurm.local import process_start
from prompttuner.slurm.slurm_backend import SlurmBackend
from prompttuner.slurm.words import Native

__all__ = ["ContractSite", "FakeContractSite", "RealContractSite"]

GPUS = 8
WALLTIME_S = 600
PATIENCE_S = 200.0


class ContractSite(ABC):
    """Eight GPUs on four nodes, partitions ``gpu`` (the default) and ``spare`` (preempted by ``gpu``)."""

    backend: Backend

    def __init__(self, home: Path) -> None:
        self.home = home
        self.agents = make_private_dir(home / "spool" / "agents")

    def request(self, ignore_term: bool = False, **fields: Any) -> AllocationRequest:
        """An allocation that sleeps until ``finish``, and may not listen to SIGTERM."""
        name = str(uuid.uuid4())
        folder = make_private_dir(self.agents / name)
        (folder / "settings.json").write_text(json.dumps({"sleep": 3600, "ignore_term": ignore_term}))
        defaults: dict[str, Any] = {"pool": "m", "gpus": 1, "gpu_type": None, "walltime_s": WALLTIME_S}
        return AllocationRequest(uuid=name, folder=folder, **{**defaults, **fields})

    def finish(self, request: AllocationRequest) -> None:
        """Its program ends by itself."""
        (request.folder / "finish").touch()

    def see(self, request: AllocationRequest, native: str | None) -> Seen:
        return self.backend.observe([(request.uuid, native)])[request.uuid]

    def wait(self, request: AllocationRequest, native: str | None, *states: Native) -> Seen:
        """Let time pass until it is in one of the states."""
        deadline = self.now() + PATIENCE_S
        while (seen := self.see(request, native)).state not in states:
            assert self.now() < deadline, f"still {seen}, not {states}"
            self.pass_time()
        return seen

    def wait_forgotten(self, native: str) -> None:
        """Until squeue does not show it any more."""
        deadline = self.now() + PATIENCE_S
        while self.in_queue(native):
            assert self.now() < deadline, "squeue still shows it"
            self.pass_time()

    def start(self, **fields: Any) -> tuple[AllocationRequest, str, Seen]:
        """Submit one and wait until its program has begun."""
        request = self.request(**fields)
        native = self.backend.submit(request)
        seen = self.wait(request, native, Native.RUNNING)
        self.wait_started(request)
        return request, native, seen

    def wait_started(self, request: AllocationRequest) -> None:
        """Until its program has begun."""
        deadline = self.now() + PATIENCE_S
        while not (request.folder / "started").exists():
            assert self.now() < deadline, "its program did not start"
            self.pass_time()

    def fill(self) -> list[str]:
        """Take all GPUs; returns the ids of who has them."""
        taken = []
        for _ in range(GPUS // 2):
            request = self.request(gpus=2)
            taken.append((request, self.backend.submit(request)))
        for request, native in taken:
            self.wait(request, native, Native.RUNNING)
        return [native for _, native in taken]

    @abstractmethod
    def now(self) -> float: ...

    @abstractmethod
    def pass_time(self) -> None: ...

    @abstractmethod
    def in_queue(self, native: str) -> bool: ...

    @abstractmethod
    def hold(self, native: str) -> None: ...

    @abstractmethod
    def release(self, native: str) -> None: ...

    @abstractmethod
    def end_walltime(self, native: str) -> None:
        """An operator moves the end of its walltime to now."""

    @abstractmethod
    def preempt(self, native: str, node: str) -> None: ...

    @abstractmethod
    def kill_program(self, request: AllocationRequest, native: str) -> None: ...

    @abstractmethod
    def program_lives(self, request: AllocationRequest, native: str) -> bool: ...

    @abstractmethod
    def node_lost(self, native: str, node: str) -> contextlib.AbstractContextManager[None]:
        """Inside: the node is silent, and nobody has noticed."""

    @abstractmethod
    def notice(self, node: str) -> None:
        """Slurm declares a silent node down."""

    @abstractmethod
    def controller_away(self) -> contextlib.AbstractContextManager[None]: ...

    @abstractmethod
    def accounting_away(self) -> contextlib.AbstractContextManager[None]: ...

    @abstractmethod
    def answers_lost(self, arrives: bool) -> contextlib.AbstractContextManager[None]:
        """Inside: sbatch fails as with a lost answer; whether the job ``arrives`` cannot be told."""

    @abstractmethod
    def forgetful(self) -> contextlib.AbstractContextManager[None]:
        """Inside: squeue forgets ended jobs within seconds instead of minutes."""


class _Sleeper:
    """What slurm_entry.main does, in virtual time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stubborn = json.loads((folder / "settings.json").read_text())["ignore_term"]
        self._told = False
        (folder / "started").write_text("1")

    def step(self, seconds: float) -> bool:
        return self._told or (self._folder / "finish").exists()

    def sigterm(self) -> None:
        self._told = not self._stubborn


class FakeContractSite(ContractSite):
    """The fake that the controller's tests run on."""

    def __init__(self, home: Path, accounting: bool = True) -> None:
        super().__init__(home)
        self.fake = FakeSlurm(self.agents, lambda allocation: _Sleeper(allocation.request.folder), GPUS)
        self.fake.accounting = accounting
        self.fake.time = time.time()  # files that scenarios write are as old as they look
        self.backend = self.fake
        self._notices: dict[str, Any] = {}

    def now(self) -> float:
        return self.fake.time

    def pass_time(self) -> None:
        self.fake.step(0.5)

    def in_queue(self, native: str) -> bool:
        return f"{native}|" in self.fake.run("squeue")

    def hold(self, native: str) -> None:
        self._of(native).held = True

    def release(self, native: str) -> None:
        self._of(native).held = False

    def end_walltime(self, native: str) -> None:
        self._of(native).ends_at = self.fake.time

    def preempt(self, native: str, node: str) -> None:
        self.fake.preempt(self._of(native))

    def kill_program(self, request: AllocationRequest, native: str) -> None:
        self.fake.kill(self._of(native))

    def program_lives(self, request: AllocationRequest, native: str) -> bool:
        return self._of(native).program is not None

    @contextlib.contextmanager
    def node_lost(self, native: str, node: str) -> Iterator[None]:
        self._notices[node] = self.fake.lose_node(self._of(native))
        yield

    def notice(self, node: str) -> None:
        self._notices[node]()

    @contextlib.contextmanager
    def controller_away(self) -> Iterator[None]:
        self.fake.away = True
        yield
        self.fake.away = False

    @contextlib.contextmanager
    def accounting_away(self) -> Iterator[None]:
        self.fake.accounting_away = True
        yield
        self.fake.accounting_away = False

    @contextlib.contextmanager
    def answers_lost(self, arrives: bool) -> Iterator[None]:
        self.fake.lose_answers, self.fake.lose_submissions = int(arrives), int(not arrives)
        yield

    @contextlib.contextmanager
    def forgetful(self) -> Iterator[None]:
        self.fake.kept_s = 2.0
        yield

    def _of(self, native: str) -> FakeAllocation:
        return self.fake.allocations[native]


class RealContractSite(ContractSite):
    """The real backend on a real cluster."""

    def __init__(self, home: Path, cluster: Cluster) -> None:
        super().__init__(home)
        self.cluster = cluster
        self.backend = self.slurm_backend(call_timeout_s=30)
        self._programs = home / "programs"

    def slurm_backend(self, call_timeout_s: float) -> SlurmBackend:
        settings = Settings(home=self.home, backend="slurm", slurm=SlurmSettings(call_timeout_s=call_timeout_s))
        return SlurmBackend(settings, entry=slurm_entry.main)

    def now(self) -> float:
        return time.monotonic()

    def pass_time(self) -> None:
        time.sleep(0.1)

    def in_queue(self, native: str) -> bool:
        return native in self.cluster.run("squeue", "-h", "--states=all", "-o", "%i").split()

    def hold(self, native: str) -> None:
        self.cluster.run("scontrol", "uhold", native)

    def release(self, native: str) -> None:
        self.cluster.run("scontrol", "release", native)

    def end_walltime(self, native: str) -> None:
        self.cluster.run("scontrol", "update", f"jobid={native}", "endtime=now")

    def preempt(self, native: str, node: str) -> None:
        self.cluster.run(
            "sbatch", "-p", "gpu", "-w", node, "--gpus-per-node=2", "-o", "/dev/null", "--wrap", "sleep 30"
        )

    def kill_program(self, request: AllocationRequest, native: str) -> None:
        os.kill(int((request.folder / "started").read_text()), signal.SIGKILL)

    def program_lives(self, request: AllocationRequest, native: str) -> bool:
        return process_start(int((request.folder / "started").read_text())) is not None

    @contextlib.contextmanager
    def node_lost(self, native: str, node: str) -> Iterator[None]:
        self.cluster.kill_node(node)
        try:
            yield
        finally:
            self.cluster.return_node(node)

    def notice(self, node: str) -> None:
        self.cluster.set_node(node, "down")

    @contextlib.contextmanager
    def controller_away(self) -> Iterator[None]:
        self.cluster.stop_slurmctld()
        patient, self.backend = self.backend, self.slurm_backend(call_timeout_s=1)
        try:
            yield
        finally:
            self.backend = patient
            self.cluster.start_slurmctld()

    @contextlib.contextmanager
    def accounting_away(self) -> Iterator[None]:
        self.cluster.stop_accounting()
        try:
            yield
        finally:
            self.cluster.start_accounting()

    @contextlib.contextmanager
    def answers_lost(self, arrives: bool) -> Iterator[None]:
        """An sbatch before the real one, that keeps the answer to itself."""
        real = shutil.which("sbatch") if arrives else "true"
        program = make_private_dir(self._programs) / "sbatch"
        said = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
        program.write_text(f'#!/bin/sh\n{real} "$@" >/dev/null\necho "{said}" >&2\nexit 1\n')
        program.chmod(0o700)
        before = os.environ["PATH"]
        os.environ["PATH"] = f"{self._programs}:{before}"
        try:
            yield
        finally:
            os.environ["PATH"] = before

    @contextlib.contextmanager
    def forgetful(self) -> Iterator[None]:
        conf = self.cluster.prefix / "slurm.conf"
        before = conf.read_text()
        conf.write_text(re.sub(r"MinJobAge=\d+", "MinJobAge=2", before))
        self.cluster.run("scontrol", "reconfigure")
        try:
            yield
        finally:
            conf.write_text(before)
            self.cluster.run("scontrol", "reconfigure")
