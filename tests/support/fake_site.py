"""A fake site: Slurm, nodes and workers in virtual time, around the *real* agent, spool, store and controller.

Fakes only what cannot be had quickly: the resource manager, the zygote's worker (it "tunes" by counting steps), time.
The contract tests in tests/slurm run the same scenarios on a real Slurm, so that this fake stays faithful.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompttuner.errors import BackendError
from prompttuner.files import create_json, make_private_dir, read_json, write_json
from prompttuner.slurm.agent.agent import Agent
from prompttuner.slurm.backend import AllocationRequest, Native, Seen, SubmitRefused, SubmitUnknown
from prompttuner.slurm.spool import AgentSettings
from prompttuner.tuning.membership import member_dir, read_membership

CHECKPOINT_STEPS = 10


@dataclass
class FakeWorker:
    """One lease: counts steps at ``rate`` a second; rank 0 writes what a real worker would."""

    job_dir: Path
    agent: str
    generation: int
    rate: float
    step: float = 0.0
    outcome: str | None = None
    ending: bool = False

    def __post_init__(self) -> None:
        self._resume()

    def _resume(self) -> None:
        plan = read_membership(self.job_dir)
        best = 0
        for generation, members in (plan.previous if plan else ())[::-1]:
            found = [read_json(member_dir(self.job_dir, generation, m) / "checkpoint.json") or {} for m in members]
            best = max([best, *[int(value.get("step", 0)) for value in found]])
        self.step = float(max(self.step, best))

    def advance(self, seconds: float) -> None:
        """Follow the plan, do steps, write files; sets ``outcome`` when the lease ends."""
        plan = read_membership(self.job_dir)
        if plan is None or plan.rank_of(self.agent) is None or plan.stop:
            self.outcome = "left"
            return
        self.generation = plan.generation
        spec = read_json(self.job_dir / "spec.json")
        ita, limit = int(spec["fake_ita"]), int(spec["max_iterations"])
        if not self.ending:
            self.step = min(self.step + seconds * self.rate * len(plan.members), ita, limit)
        done = self.step >= min(ita, limit)
        if plan.rank_of(self.agent) == 0:
            self._write(spec, done, ita)
        if done:
            self.outcome = "done"
        elif self.ending:
            self.outcome = "terminated"

    def _write(self, spec: dict[str, Any], done: bool, ita: int) -> None:
        folder = make_private_dir(member_dir(self.job_dir, self.generation, self.agent))
        step = int(self.step)
        kept = step if done or self.ending else step - step % CHECKPOINT_STEPS
        write_json(folder / "checkpoint.json", {"step": kept})
        write_json(folder / "progress.json", {"step": step, "loss": 1.0, "first_step_at": 1.0, "beat": step})
        if done:
            reached = step >= ita
            make_private_dir(folder / "result")
            write_json(folder / "result" / "result.json", {"prompt": spec["fake_prompt"], "step": step})
            outcome = "reached" if reached else "exhausted"
            write_json(folder / "done.json", {"outcome": outcome, "step": step, "ita": step if reached else None})


class FakeZygote:
    """The zygote's protocol with fake workers; imports and loads take their (virtual) time."""

    def __init__(self, site: FakeSite) -> None:
        self.alive = True
        self.worker: FakeWorker | None = None
        self._site = site
        self._due: list[tuple[float, dict[str, Any]]] = [(site.time + site.import_s, {"ev": "ready"})]

    def load(self, model: str, dtype: str = "auto", trust_remote_code: bool = False) -> None:
        self._due.append((self._site.time + self._site.load_s, {"ev": "loaded", "model": model, "seconds": 1.0}))

    def lease(self, job_dir: Path, agent: str, generation: int, address: str) -> None:
        self.worker = FakeWorker(Path(job_dir), agent, generation, self._site.rate)
        self._due.append((self._site.time, {"ev": "lease_started", "pid": 1}))

    def idle_work(self, bank_dir: Path, model: str) -> None:
        """The fake has no bank."""

    def end_lease(self) -> None:
        if self.worker is not None:
            self.worker.ending = True

    def kill_lease(self) -> None:
        self.crash()

    def crash(self) -> None:
        """The worker dies without a word."""
        if self.worker is not None:
            generation, self.worker = self.worker.generation, None
            self._due.append((self._site.time, _ended("crashed", generation)))

    def advance(self, seconds: float) -> None:
        if self.worker is None:
            return
        self.worker.advance(seconds)
        if self.worker.outcome is not None:
            self._due.append((self._site.time, _ended(self.worker.outcome, self.worker.generation)))
            self.worker = None

    def poll(self) -> list[dict[str, Any]]:
        ready = [event for at, event in self._due if at <= self._site.time]
        self._due = [(at, event) for at, event in self._due if at > self._site.time]
        return ready

    def exit(self) -> None:
        self.alive = False
        self.worker = None


def _ended(outcome: str, generation: int) -> dict[str, Any]:
    return {"ev": "lease_ended", "outcome": outcome, "generation": generation}


@dataclass
class FakeAllocation:
    native_id: str
    request: AllocationRequest
    state: Native = Native.PENDING
    word: str = "PENDING"
    agent: Agent | None = None
    zygote: FakeZygote | None = None
    cancelled: bool = False
    silent: bool = False
    """Its node is lost: the agent is gone, Slurm has not noticed yet."""


@dataclass
class FakeSite:
    """Implements ``Backend``. ``step(seconds)`` lets everything on the site happen."""

    root: Path
    gpus: int = 4
    rate: float = 5.0
    """Steps a second of one member."""
    import_s: float = 2.0
    load_s: float = 2.0
    seed: int = 0
    name: str = "fake"
    time: float = 1_000_000.0
    allocations: dict[str, FakeAllocation] = field(default_factory=dict)
    """By native id."""
    refuse: int = 0
    """So many of the next submissions are refused."""
    lose_answers: int = 0
    """So many of the next submissions are accepted, but the answer is lost."""
    lose_submissions: int = 0
    """So many of the next submissions fail with an unknown outcome, and nothing was started."""
    away: bool = False
    """No Slurm command answers."""
    submitted: list[str] = field(default_factory=list)
    """Every uuid that was ever accepted."""
    admitted: list[str] = field(default_factory=list)
    """Every uuid whose agent took its claim."""

    def __post_init__(self) -> None:
        self._next = 100
        self.random = random.Random(self.seed)

    # -- Backend ----------------------------------------------------------------------------------------------

    def submit(self, request: AllocationRequest) -> str:
        if self.away:
            raise SubmitUnknown("sbatch: time-out")
        if self.refuse:
            self.refuse -= 1
            raise SubmitRefused("sbatch: QOSMaxSubmitJobPerUserLimit")
        if self.lose_submissions:
            self.lose_submissions -= 1
            raise SubmitUnknown("sbatch: socket timed out")
        native = self._accept(request)
        if self.lose_answers:
            self.lose_answers -= 1
            raise SubmitUnknown("sbatch: socket timed out on send/recv")
        return native

    def _accept(self, request: AllocationRequest) -> str:
        self._next += 1
        native = str(self._next)
        self.allocations[native] = FakeAllocation(native, request)
        self.submitted.append(request.uuid)
        return native

    def cancel(self, native_ids: Sequence[str]) -> None:
        if self.away:
            raise BackendError("scancel: time-out")
        for native in native_ids:
            allocation = self.allocations.get(native)
            if allocation is not None and allocation.state != Native.ENDED:
                if allocation.agent is not None and not allocation.silent:
                    allocation.agent.told_to_end = "SIGTERM"
                    allocation.cancelled = True
                else:
                    self._end(allocation, "CANCELLED")

    def observe(self, known: Sequence[tuple[str, str | None]]) -> dict[str, Seen]:
        if self.away:
            raise BackendError("squeue: time-out")
        by_name = {a.request.uuid: a for a in self.allocations.values()}
        found = {}
        for uuid, native in known:
            allocation = self.allocations.get(native or "") or by_name.get(uuid)
            if allocation is None:
                found[uuid] = Seen(Native.UNKNOWN)
            else:
                found[uuid] = Seen(allocation.state, allocation.native_id, allocation.word, node="n1")
        return found

    # -- what happens on the site --------------------------------------------------------------------------------

    def step(self, seconds: float = 1.0) -> None:
        """Let virtual time pass: start queued allocations while GPUs are free, let agents and workers work."""
        self.time += seconds
        for allocation in list(self.allocations.values()):
            if allocation.state == Native.PENDING and self.busy_gpus < self.gpus:
                self._start(allocation)
            agent = allocation.agent
            if agent is None or allocation.silent or allocation.state == Native.ENDED:
                continue
            assert allocation.zygote is not None
            allocation.zygote.advance(seconds)
            agent.step()
            if agent._end is not None:
                agent.close()
                reason, detail = agent._end
                write_json(agent.folder / "exit.json", {"reason": reason, "detail": detail, "at": self.time})
                self._end(allocation, "CANCELLED by 1000" if allocation.cancelled else "COMPLETED")

    @property
    def busy_gpus(self) -> int:
        return sum(a.request.gpus for a in self.allocations.values() if a.state == Native.RUNNING)

    def _start(self, allocation: FakeAllocation) -> None:
        folder = allocation.request.folder
        allocation.state, allocation.word = Native.RUNNING, "RUNNING"
        value = read_json(folder / "settings.json")
        if value is None or not create_json(folder / "instance.json", {"native_id": allocation.native_id, "pid": 1}):
            self._end(allocation, "COMPLETED")  # a doubled sbatch: this copy leaves without a word
            return
        self.admitted.append(allocation.request.uuid)

        def zygote(*_: object) -> FakeZygote:
            allocation.zygote = FakeZygote(self)
            return allocation.zygote

        settings = AgentSettings.from_json(value)
        settings.interface = "lo"
        allocation.agent = Agent(folder, settings, allocation.native_id, zygote, lambda: self.time)
        allocation.zygote = FakeZygote(self)
        allocation.agent._zygote = allocation.zygote
        allocation.agent._zygote_starts = 1

    def _end(self, allocation: FakeAllocation, word: str) -> None:
        allocation.state, allocation.word = Native.ENDED, word
        allocation.agent = allocation.zygote = None

    # -- faults ---------------------------------------------------------------------------------------------------

    def running(self) -> list[FakeAllocation]:
        return [a for a in self.allocations.values() if a.state == Native.RUNNING and a.agent is not None]

    def kill(self, allocation: FakeAllocation, word: str = "FAILED") -> None:
        """SIGKILL of the whole allocation: no farewell."""
        self._end(allocation, word)

    def preempt(self, allocation: FakeAllocation) -> None:
        self._end(allocation, "PREEMPTED")

    def lose_node(self, allocation: FakeAllocation) -> Callable[[], None]:
        """The node vanishes; call the result when Slurm notices."""
        allocation.silent = True
        return lambda: self._end(allocation, "NODE_FAIL")
