"""A fake site in virtual time: the *real* agent, spool, store and controller on a fake Slurm with fake workers.

Fakes only what cannot be had quickly: the resource manager (fake_slurm.py), the zygote's worker (it "tunes" by counting
steps), time.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from fake_slurm import FakeAllocation, FakeSlurm

from prompttuner.files import make_private_dir, read_json, write_json
from prompttuner.protocol.agents import AgentSettings, Farewell, Instance
from prompttuner.protocol.files import create_message, read_message, understood, write_message
from prompttuner.protocol.jobs import CheckpointPointer, Done, Outcome, Progress
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.protocol.zygote import ZygoteEvent
from prompttuner.slurm.agent.agent import Agent
from prompttuner.worker.membership import member_dir, read_membership

__all__ = ["FakeSite"]

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
            found = [member_dir(self.job_dir, generation, m) / CheckpointPointer.FILE for m in members]
            pointers = [understood(read_message(CheckpointPointer, path)) for path in found]
            best = max([best, *[pointer.step for pointer in pointers if pointer is not None]])
        self.step = float(max(self.step, best))

    def advance(self, seconds: float) -> None:
        """Follow the plan, do steps, write files; sets ``outcome`` when the lease ends."""
        plan = read_membership(self.job_dir)
        if plan is None or plan.rank_of(self.agent) is None or plan.stop:
            self.outcome = "left"
            return
        self.generation = plan.generation
        spec = ResolvedSpec.expect(read_json(self.job_dir / ResolvedSpec.FILE))
        fake = json.loads(spec.note)  # what this fake worker shall do
        ita, limit = int(fake["ita"]), spec.max_iterations
        if not self.ending:
            self.step = min(self.step + seconds * self.rate * len(plan.members), ita, limit)
        done = self.step >= min(ita, limit)
        if plan.rank_of(self.agent) == 0:
            self._write(fake["prompt"], done, ita)
        if done:
            self.outcome = "done"
        elif self.ending:
            self.outcome = "terminated"

    def _write(self, prompt: str, done: bool, ita: int) -> None:
        folder = make_private_dir(member_dir(self.job_dir, self.generation, self.agent))
        step = int(self.step)
        kept = step if done or self.ending else step - step % CHECKPOINT_STEPS
        write_message(folder / CheckpointPointer.FILE, CheckpointPointer(kept))
        progress = Progress(beat=step, phase="running", step=step, loss=1.0, first_step_at=1.0)
        write_message(folder / Progress.FILE, progress)
        if done:
            reached = step >= ita
            make_private_dir(folder / "result")
            write_json(folder / "result" / "result.json", {"prompt": prompt, "step": step})
            outcome: Outcome = "reached" if reached else "exhausted"
            write_message(folder / Done.FILE, Done(outcome, step=step, ita=step if reached else None))


class FakeZygote:
    """The zygote's protocol with fake workers; imports and loads take their (virtual) time."""

    def __init__(self, site: FakeSite) -> None:
        self.alive = True
        self.worker: FakeWorker | None = None
        self._site = site
        self._due: list[tuple[float, ZygoteEvent]] = [(site.time + site.import_s, ZygoteEvent(ev="ready"))]

    def load(self, model: str, dtype: str = "auto", trust_remote_code: bool = False) -> None:
        self._due.append((self._site.time + self._site.load_s, ZygoteEvent(ev="loaded", model=model, seconds=1.0)))

    def lease(self, job_dir: Path, agent: str, generation: int, address: str) -> None:
        self.worker = FakeWorker(Path(job_dir), agent, generation, self._site.rate)
        self._due.append((self._site.time, ZygoteEvent(ev="lease_started", pid=1)))

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

    def poll(self) -> list[ZygoteEvent]:
        ready = [event for at, event in self._due if at <= self._site.time]
        self._due = [(at, event) for at, event in self._due if at > self._site.time]
        return ready

    def exit(self) -> None:
        self.alive = False
        self.worker = None


def _ended(outcome: str, generation: int) -> ZygoteEvent:
    return ZygoteEvent(ev="lease_ended", outcome=outcome, generation=generation)


class FakeAgent:
    """The real agent in virtual time, with a fake zygote."""

    def __init__(self, site: FakeSite, allocation: FakeAllocation, settings: AgentSettings) -> None:
        self.zygote = FakeZygote(site)
        self._site = site

        def again(*_: object) -> FakeZygote:
            self.zygote = FakeZygote(site)
            return self.zygote

        settings = replace(settings, elastic=replace(settings.elastic, interface="lo"))
        self._agent = Agent(allocation.request.folder, settings, allocation.native_id, again, lambda: site.time)
        self._agent._zygote = self.zygote
        self._agent._zygote_starts = 1

    def step(self, seconds: float) -> bool:
        self.zygote.advance(seconds)
        self._agent.step()
        if self._agent._end is None:
            return False
        self._agent.close()
        reason, detail = self._agent._end
        write_message(self._agent.folder / Farewell.FILE, Farewell(reason, detail, self._site.time))
        return True

    def sigterm(self) -> None:
        self._agent.told_to_end = "SIGTERM"


class FakeSite(FakeSlurm):
    """A fake Slurm whose allocations run agents.

    Args:
        root: holds ``home/spool`` of the one user.
        gpus: of the whole site.
        rate: steps a second of one member.
        import_s, load_s: of a zygote.
    """

    def __init__(
        self, root: Path, gpus: int = 4, rate: float = 5.0, import_s: float = 2.0, load_s: float = 2.0, seed: int = 0
    ) -> None:
        super().__init__(root / "home" / "spool" / "agents", self._start_agent, gpus)
        self.rate, self.import_s, self.load_s = rate, import_s, load_s
        self.random = random.Random(seed)
        self.admitted: list[str] = []
        """Every uuid whose agent took its claim."""

    def _start_agent(self, allocation: FakeAllocation) -> FakeAgent | None:
        folder = allocation.request.folder
        settings = understood(read_message(AgentSettings, folder / AgentSettings.FILE))
        claim = Instance(native_id=allocation.native_id, pid=1)
        if settings is None or not create_message(folder / Instance.FILE, claim):
            return None  # a doubled sbatch: this copy leaves without a word
        self.admitted.append(allocation.request.uuid)
        return FakeAgent(self, allocation, settings)
