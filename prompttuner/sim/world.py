"""The simulated world: jobs and agents in virtual time, and the snapshot in which policies see them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np

from prompttuner.errors import StateError
from prompttuner.policy.contract.snapshot import (
    AgentPhase,
    Agents,
    Arrivals,
    JobPhase,
    Jobs,
    Lessons,
    PoolProfile,
    SiteLimits,
    Snapshot,
)
from prompttuner.policy.estimate import speed_table
from prompttuner.sim.entities import AGENT_COLUMNS, AGENT_KINDS, JOB_COLUMNS, JOB_KINDS, SimAgent, SimJob
from prompttuner.sim.options import SimOptions, SimResult
from prompttuner.sim.table import Table
from prompttuner.trace.job import TraceJob

__all__ = ["World"]

LOSS_NOTICED_S = 15.0
"""Seconds until a job's other members go on after the loss of one."""
LESSONS = 32
"""Errors of each kind that a policy sees of each pool."""
HISTORY = 256
"""Arrivals a policy sees of each pool."""
_BUCKET = {
    AgentPhase.STARTING: 1, AgentPhase.SWITCHING: 1, AgentPhase.WARM: 2, AgentPhase.DRAINING: 2, AgentPhase.BUSY: 0,
    AgentPhase.REQUESTED: 3,
}  # fmt: skip
_SEEN = frozenset({"done", "queued", "ready", "gone", "idle_guard"})
"""Events that a live controller learns of from the spool, in its next tick."""
_QUANTILE = 1.2816
"""Of the standard normal distribution: P90."""


class World:
    """State of the simulated site at ``now``; ``Site`` adds the actions."""

    def __init__(
        self,
        trace: Sequence[TraceJob],
        profiles: Mapping[str, PoolProfile],
        options: SimOptions,
        policy: str,
        told: Mapping[str, PoolProfile] | None = None,
    ) -> None:
        self.options = options
        names = sorted({job.llm for job in trace})
        self.pools = [profiles[name] for name in names]
        self.told = self.pools if told is None else [told[name] for name in names]
        """The pools as policies see them."""
        self.pool_of = {name: i for i, name in enumerate(names)}
        widest = [max(job.min_gpus, min(job.max_gpus, 1024)) for job in trace]
        upto = max([*(p.speedup[-1][0] for p in self.pools), *widest], default=1)
        self.speeds = [speed_table(p.speedup, upto) for p in self.pools]
        self.now = 0.0
        self.happened_at = 0.0
        """When the event at hand happened; before ``now`` where a tick had to see it."""
        self.jobs_at = 0.0
        self.events: list[tuple[float, int, str, SimJob | SimAgent, int]] = []
        self.serial = 0
        self.jobs, self.agents = Table(JOB_KINDS), Table(AGENT_KINDS)
        self.job_of: dict[str, SimJob] = {}
        self.agent_of: dict[str, SimAgent] = {}
        self.count = [0, 0, 0, 0]
        self.spent = [0.0, 0.0, 0.0, 0.0]
        self.result = SimResult(policy, options.gpus, [])
        self.rng = np.random.default_rng([options.seed, 0x51])
        self.dirty = False
        self.unseen: list[tuple[float, str, SimJob | SimAgent, int]] = []
        """Events that count from the next tick on, which sees them."""
        self.free_slots = list(range(options.gpus))
        self._arrived = [0] * len(names)
        sizes = np.bincount([self.pool_of[job.llm] for job in trace], minlength=len(names))
        self._times = [np.zeros(size) for size in sizes]
        self._work = [np.zeros(size) for size in sizes]
        self._slack = [np.zeros(size) for size in sizes]
        self.snapshot = self._empty_snapshot()

    # -- what a policy sees

    def _empty_snapshot(self) -> Snapshot:
        options = self.options
        jobs = Jobs(self.jobs.ids, *(self.jobs.data[name][:0] for name in JOB_COLUMNS))
        agents = Agents(self.agents.ids, *(self.agents.data[name][:0] for name in AGENT_COLUMNS))
        limits = SiteLimits(
            options.gpus, idle_limit_s=options.idle_limit_s, walltime_s=options.walltime_s, warm_pool=options.warm_pool
        )
        empty = [np.zeros(0) for _ in self.pools]
        arrivals = Arrivals(list(empty), list(empty), list(empty))
        nothing = np.zeros((0, 2))
        lessons = [Lessons(nothing, nothing, nothing, nothing) for _ in self.pools]
        return Snapshot(0.0, jobs, agents, self.told, limits, arrivals, options.tick_s, lessons=lessons)

    def learn(self, pool: int, what: str, truth: float, told: float) -> None:
        """Remember, for the policy, how wrong one was."""
        if told > 0 and truth > 0:
            lessons = self.snapshot.lessons[pool]
            row = np.array([[self.now, truth / told]])
            setattr(lessons, what, np.concatenate([getattr(lessons, what)[1 - LESSONS :], row]))

    def observe(self) -> Snapshot:
        """The snapshot, brought to ``now`` in place."""
        table, n = self.jobs.data, self.jobs.n
        left, rate = table["left"][:n], table["rate"][:n]
        left -= rate * (self.now - self.jobs_at)
        np.maximum(left, 0.0, out=left)
        self.jobs_at = self.now
        mid, high = table["iters_mid"][:n], table["iters_hi"][:n]
        np.divide(left, table["total"][:n], out=table["unseen"][:n])
        sigma = self.options.predict_sigma
        if self.options.stale_s:
            left = np.minimum(left + rate * self.options.stale_s, table["total"][:n])
        if sigma or self.options.predict_bias != 1.0:
            # what is left to guess shrinks with what has been seen of the loss curve
            unseen = left / table["total"][:n]
            np.multiply(left, 1.0 + (table["error"][:n] - 1.0) * unseen, out=mid)
            np.multiply(mid, 1.0 + (math.exp(_QUANTILE * sigma) - 1.0) * unseen, out=high)
        else:
            mid[:] = left
            high[:] = left
        self.jobs.publish(self.snapshot.jobs, JOB_COLUMNS)
        self.agents.publish(self.snapshot.agents, AGENT_COLUMNS)
        self.snapshot.now = self.now
        return self.snapshot

    # -- time and accounts

    def push(self, at: float, kind: str, subject: SimJob | SimAgent) -> None:
        """Put an event into the queue."""
        self.serial += 1
        heapq.heappush(self.events, (at, self.serial, kind, subject, subject.version))

    def advance(self, to: float) -> None:
        """Charge the GPUs held until ``to`` and make it now."""
        passed = to - self.now
        if passed > 0:
            self.spent[0] += self.count[0] * passed
            self.spent[1] += self.count[1] * passed
            self.spent[2] += self.count[2] * passed
            self.now = to

    def pop(self) -> None:
        """Handle the earliest event."""
        at, _, kind, subject, version = heapq.heappop(self.events)
        if version != subject.version:
            return
        self.advance(at)
        self.dirty = True
        if self.options.daemon and kind in _SEEN:
            self.unseen.append((at, kind, subject, version))
        else:
            self._handle(at, kind, subject)

    def see(self) -> None:
        """A tick sees what has happened since the last."""
        unseen, self.unseen = self.unseen, []
        for at, kind, subject, version in unseen:
            if version == subject.version:
                self._handle(at, kind, subject)

    def _handle(self, at: float, kind: str, subject: SimJob | SimAgent) -> None:
        self.happened_at = at
        getattr(self, "_on_" + kind)(subject)

    def enter(self, agent: SimAgent, phase: AgentPhase, ready_at: float | None = None) -> None:
        """Bring an agent into a phase; ``ready_at`` is when it will leave it."""
        self.count[_BUCKET[AgentPhase(agent.phase)]] -= 1
        self.count[_BUCKET[phase]] += 1
        agent.phase = int(phase)
        agent.version += 1
        data, row = self.agents.data, agent.row
        data["phase"][row] = phase
        data["since"][row] = self.now
        if ready_at is not None:
            data["ready_at"][row] = ready_at

    def spread(self, seconds: float) -> float:
        """A duration with the random scatter that the options ask for."""
        sigma = self.options.start_sigma
        return seconds * math.exp(self.rng.normal(0.0, sigma)) if sigma else seconds

    # -- jobs

    def arrive(self, trace: TraceJob) -> None:
        """A job is submitted now."""
        options, pool = self.options, self.pool_of[trace.llm]
        job = SimJob(trace, pool)
        bank = options.bank
        error = options.predict_bias
        if options.predict_sigma:
            error *= math.exp(self.rng.normal(0.0, options.predict_sigma))
        values = {
            "pool": pool, "phase": JobPhase.WAITING, "submit": trace.submit_s, "deadline": trace.deadline_s,
            "priority": trace.priority, "min_gpus": trace.min_gpus, "max_gpus": trace.max_gpus, "step_s": trace.step_s,
            "iters_mid": trace.iters, "iters_hi": trace.iters, "bank_factor_mid": options.bank_mid if bank else 1.0,
            "bank_factor_hi": options.bank_hi if bank else 1.0, "phase_since": self.now, "best_effort": False,
            "stop_on_miss": trace.stop_on_miss, "left": trace.iters, "rate": 0.0, "error": error, "total": trace.iters,
            "unseen": 1.0,
        }  # fmt: skip
        self.jobs.append(job, trace.id, values)
        if self.job_of.setdefault(trace.id, job) is not job:
            raise StateError(f"two jobs of the trace are called {trace.id}")
        seen = self._arrived[pool]
        banked = options.bank_mid * trace.work_s + self.pools[pool].lookup_s
        self._times[pool][seen], self._slack[pool][seen] = self.now, trace.deadline_s - trace.submit_s
        self._work[pool][seen] = min(trace.work_s, banked) if bank else trace.work_s
        self._arrived[pool] = seen = seen + 1
        arrivals, latest = self.snapshot.arrivals, slice(max(0, seen - HISTORY), seen)
        arrivals.times[pool], arrivals.work[pool] = self._times[pool][latest], self._work[pool][latest]
        arrivals.slack[pool] = self._slack[pool][latest]
        self.result.jobs.append(job.outcome)
        self.dirty = True

    def left(self, job: SimJob) -> float:
        """Work (one-GPU seconds) that a job still has to do now."""
        data, row = self.jobs.data, job.row
        return max(float(data["left"][row]) - float(data["rate"][row]) * (self.now - self.jobs_at), 0.0)

    def set_rate(self, job: SimJob, rate: float, left: float | None = None) -> None:
        """From now on the job works at this rate; ``left`` replaces its remaining work."""
        data, row = self.jobs.data, job.row
        now_left = self.left(job) if left is None else left
        data["rate"][row] = rate
        data["left"][row] = now_left + rate * (self.now - self.jobs_at)

    def job_phase(self, job: SimJob, phase: JobPhase) -> None:
        """Bring a job into a phase."""
        self.jobs.data["phase"][job.row] = phase
        self.jobs.data["phase_since"][job.row] = self.now

    def charge(self, job: SimJob) -> None:
        """Add the GPU-seconds since the last charge to the job's account."""
        held = len(job.members)
        if held and self.now > job.changed_at:
            job.outcome.gpu_s += held * (self.now - job.changed_at)
            self.result.spans.append((job.trace.id, job.changed_at, self.now, held))
        job.changed_at = self.now

    def end_job(self, job: SimJob) -> None:
        """Take it out; its agents are warm again."""
        self.charge(job)
        job.version += 1
        agent_job = self.agents.data["job"]
        for agent in job.members:
            agent.job = None
            agent_job[agent.row] = -1
            self.warm(agent)
        for agent in job.reserved:
            agent.reserved = None
            agent_job[agent.row] = -1
        del self.job_of[job.trace.id]
        moved = self.jobs.remove(job.row)
        if moved is not None:
            for agent in moved.members:
                agent_job[agent.row] = moved.row
            for agent in moved.reserved:
                agent_job[agent.row] = moved.row
        self.result.end_s = self.now

    def _on_done(self, job: SimJob) -> None:
        self.learn(job.pool, "work", 1.0, float(self.jobs.data["error"][job.row]))
        job.outcome.end_s = self.now
        self.end_job(job)

    def _on_up(self, job: SimJob) -> None:
        """All members are there: look up, or tune."""
        if job.lookup_s > 0:
            self.job_phase(job, JobPhase.LOOKUP)
            self.push(self.now + job.lookup_s, "looked", job)
        else:
            self._run(job)

    def _on_looked(self, job: SimJob) -> None:
        job.lookup_s = 0.0
        job.outcome.looked_up = True
        self.learn(job.pool, "bank", job.trace.bank_factor, self.options.bank_mid)
        data, row = self.jobs.data, job.row
        data["bank_factor_mid"][row] = data["bank_factor_hi"][row] = 1.0
        data["total"][row] *= job.trace.bank_factor
        self.set_rate(job, 0.0, self.left(job) * job.trace.bank_factor)
        self._run(job)

    def _run(self, job: SimJob) -> None:
        rate = self.speeds[job.pool][len(job.members)] / job.trace.step_s
        self.set_rate(job, rate)
        self.job_phase(job, JobPhase.RUNNING)
        self.push(self.now + self.left(job) / rate, "done", job)

    def _on_resize(self, job: SimJob) -> None:
        """The new membership meets at a step boundary."""
        self.stand_still(job, self.pools[job.pool].resize_s)

    def stand_still(self, job: SimJob, seconds: float) -> None:
        """Pause a job for a resize."""
        job.version += 1
        self.set_rate(job, 0.0)
        job.up_at = self.now + seconds
        self.push(job.up_at, "up", job)

    # -- agents

    def _on_queued(self, agent: SimAgent) -> None:
        """Slurm starts the allocation."""
        asked_at = float(self.agents.data["since"][agent.row])
        self.learn(agent.pool, "queue", self.now - asked_at - self.options.spool_s, self.told[agent.pool].queue_s)
        start = self.spread(self.pools[agent.pool].start_s)
        self.enter(agent, AgentPhase.STARTING, self.now + self.told[agent.pool].start_s)
        self.agents.data["ends_at"][agent.row] = self.now + self.options.walltime_s
        self.push(max(self.happened_at + start, self.now), "ready", agent)
        agent.slot = heapq.heappop(self.free_slots)
        for kind, rate in (
            ("lost", self.options.losses_per_gpu_hour / self.options.gpus_per_node),
            ("preempted", self.options.preemptions_per_gpu_hour),
        ):
            if rate > 0:
                self.push_fixed(self.now + self.rng.exponential(3600.0 / rate), kind, agent)
        if math.isfinite(self.options.walltime_s):
            self.push_fixed(self.now + self.options.walltime_s, "walltime", agent)

    def push_fixed(self, at: float, kind: str, agent: SimAgent) -> None:
        """An event that no change of phase voids."""
        self.push(at, kind, _Held(agent))  # type: ignore[arg-type]

    def warm(self, agent: SimAgent) -> None:
        """An agent has its LLM loaded."""
        self.enter(agent, AgentPhase.WARM, self.now)
        self.push(self.now + self.options.idle_limit_s, "idle_guard", agent)

    def _on_ready(self, agent: SimAgent) -> None:
        if agent.phase == AgentPhase.STARTING:
            since = float(self.agents.data["since"][agent.row])
            self.learn(agent.pool, "start", self.now - since, self.told[agent.pool].start_s)
        self.warm(agent)

    _on_freed = _on_ready

    def _on_idle_guard(self, agent: SimAgent) -> None:
        self.remove_agent(agent)

    _on_gone = _on_idle_guard

    def remove_agent(self, agent: SimAgent) -> None:
        """An agent has ended and its GPUs are free."""
        if agent.reserved is not None:
            agent.reserved.reserved.discard(agent)
        self.count[_BUCKET[AgentPhase(agent.phase)]] -= 1
        agent.version += 1
        if agent.slot >= 0:
            heapq.heappush(self.free_slots, agent.slot)
        del self.agent_of[agent.id]
        self.agents.remove(agent.row)
        agent.row = -1

    def _on_lost(self, holder: _Held) -> None:
        """The node fails, with all agents on it; who worked with them notices after a while."""
        if holder.agent.row >= 0:
            node = holder.agent.slot // self.options.gpus_per_node
            there = [agent for agent in self.agent_of.values() if agent.slot // self.options.gpus_per_node == node]
            self._lose(there, self.options.checkpoint_s, LOSS_NOTICED_S)

    def _on_preempted(self, holder: _Held) -> None:
        self._lose([holder.agent], 0.0, 0.0)

    def _on_walltime(self, holder: _Held) -> None:
        self._lose([holder.agent], 0.0, LOSS_NOTICED_S)

    def _lose(self, agents: Sequence[SimAgent], rollback_s: float, noticed_s: float) -> None:
        bereft: dict[str, SimJob] = {}
        for agent in agents:
            if agent.row < 0:
                continue
            job = agent.job
            self.remove_agent(agent)
            if job is not None:
                self.charge(job)
                job.members.remove(agent)
                agent.job = None
                bereft[job.trace.id] = job
        for job in bereft.values():
            self._go_on(job, rollback_s, noticed_s)

    def _go_on(self, job: SimJob, rollback_s: float, noticed_s: float) -> None:
        """With whoever is left of its members; with none it waits, and goes back to its last checkpoint."""
        if job.members:
            self.stand_still(job, noticed_s + self.pools[job.pool].resize_s)
            self.job_phase(job, JobPhase.STARTING)
        else:
            data, row = self.jobs.data, job.row
            redo = float(data["rate"][row]) * float(self.rng.uniform(0, rollback_s))
            self.set_rate(job, 0.0, min(self.left(job) + redo, float(data["total"][row])))
            job.version += 1
            self.job_phase(job, JobPhase.WAITING)


class _Held:
    """Carries an agent through an event that its changes of phase do not void."""

    __slots__ = ("agent", "version")

    def __init__(self, agent: SimAgent) -> None:
        self.agent = agent
        self.version = 0
