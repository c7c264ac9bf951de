"""The simulated site: applies actions and events in virtual time, and keeps the snapshot that policies read."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np

from prompttuner.errors import StateError
from prompttuner.policy import plan as act
from prompttuner.policy.estimate import speed_table
from prompttuner.policy.snapshot import AgentPhase, Agents, Arrivals, JobPhase, Jobs, PoolProfile, SiteLimits, Snapshot
from prompttuner.sim.entities import AGENT_COLUMNS, AGENT_KINDS, JOB_COLUMNS, JOB_KINDS, SimAgent, SimJob
from prompttuner.sim.options import SimOptions, SimResult
from prompttuner.sim.table import Table
from prompttuner.trace.job import TraceJob

__all__ = ["World"]

LOSS_NOTICED_S = 15.0
"""Seconds until a job's other members go on after the loss of one."""
HISTORY = 256
"""Arrivals a policy sees of each pool."""
_BUCKET = {
    AgentPhase.STARTING: 1, AgentPhase.SWITCHING: 1, AgentPhase.WARM: 2, AgentPhase.DRAINING: 2, AgentPhase.BUSY: 0,
    AgentPhase.REQUESTED: 3,
}  # fmt: skip
_QUANTILE = 1.2816
"""Of the standard normal distribution: P90."""


class World:
    """State of the simulated site at ``now``. Events are (time, number, handler, subject, version)."""

    def __init__(
        self, trace: Sequence[TraceJob], profiles: Mapping[str, PoolProfile], options: SimOptions, policy: str
    ) -> None:
        self.options = options
        names = sorted({job.llm for job in trace})
        self.pools = [profiles[name] for name in names]
        self.pool_of = {name: i for i, name in enumerate(names)}
        upto = max((max(p.speedup[-1][0] for p in self.pools), *(min(j.max_gpus, 1024) for j in trace)), default=1)
        self.speeds = [speed_table(p.speedup, upto) for p in self.pools]
        self.now = 0.0
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
        self._arrived = [0] * len(names)
        sizes = np.bincount([self.pool_of[job.llm] for job in trace], minlength=len(names))
        self._times = [np.zeros(size) for size in sizes]
        self._work = [np.zeros(size) for size in sizes]
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
        arrivals = Arrivals(list(empty), list(empty))
        return Snapshot(0.0, jobs, agents, self.pools, limits, arrivals, options.tick_s)

    def observe(self) -> Snapshot:
        """The snapshot, brought to ``now`` in place."""
        table, n = self.jobs.data, self.jobs.n
        left, rate = table["left"][:n], table["rate"][:n]
        left -= rate * (self.now - self.jobs_at)
        np.maximum(left, 0.0, out=left)
        self.jobs_at = self.now
        mid, high = table["iters_mid"][:n], table["iters_hi"][:n]
        sigma = self.options.predict_sigma
        if sigma:
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
        getattr(self, "_on_" + kind)(subject)

    def _enter(self, agent: SimAgent, phase: AgentPhase, ready_at: float | None = None) -> None:
        self.count[_BUCKET[AgentPhase(agent.phase)]] -= 1
        self.count[_BUCKET[phase]] += 1
        agent.phase = int(phase)
        agent.version += 1
        data, row = self.agents.data, agent.row
        data["phase"][row] = phase
        data["since"][row] = self.now
        if ready_at is not None:
            data["ready_at"][row] = ready_at

    def _spread(self, seconds: float) -> float:
        sigma = self.options.start_sigma
        return seconds * math.exp(self.rng.normal(0.0, sigma)) if sigma else seconds

    # -- jobs

    def arrive(self, trace: TraceJob) -> None:
        """A job is submitted now."""
        options, pool = self.options, self.pool_of[trace.llm]
        job = SimJob(trace, pool)
        bank = options.bank
        error = math.exp(self.rng.normal(0.0, options.predict_sigma)) if options.predict_sigma else 1.0
        values = {
            "pool": pool, "phase": JobPhase.WAITING, "submit": trace.submit_s, "deadline": trace.deadline_s,
            "priority": trace.priority, "min_gpus": trace.min_gpus, "max_gpus": trace.max_gpus, "step_s": trace.step_s,
            "iters_mid": trace.iters, "iters_hi": trace.iters, "bank_factor_mid": options.bank_mid if bank else 1.0,
            "bank_factor_hi": options.bank_hi if bank else 1.0, "phase_since": self.now, "best_effort": False,
            "stop_on_miss": trace.stop_on_miss, "left": trace.iters, "rate": 0.0, "error": error, "total": trace.iters,
        }  # fmt: skip
        self.jobs.append(job, trace.id, values)
        if self.job_of.setdefault(trace.id, job) is not job:
            raise StateError(f"two jobs of the trace are called {trace.id}")
        seen = self._arrived[pool]
        self._times[pool][seen], self._work[pool][seen] = self.now, trace.work_s
        self._arrived[pool] = seen = seen + 1
        self.snapshot.arrivals.times[pool] = self._times[pool][max(0, seen - HISTORY) : seen]
        self.snapshot.arrivals.work[pool] = self._work[pool][max(0, seen - HISTORY) : seen]
        self.result.jobs.append(job.outcome)
        self.dirty = True

    def _left(self, job: SimJob) -> float:
        data, row = self.jobs.data, job.row
        return max(float(data["left"][row]) - float(data["rate"][row]) * (self.now - self.jobs_at), 0.0)

    def _set_rate(self, job: SimJob, rate: float, left: float | None = None) -> None:
        data, row = self.jobs.data, job.row
        now_left = self._left(job) if left is None else left
        data["rate"][row] = rate
        data["left"][row] = now_left + rate * (self.now - self.jobs_at)

    def _job_phase(self, job: SimJob, phase: JobPhase) -> None:
        self.jobs.data["phase"][job.row] = phase
        self.jobs.data["phase_since"][job.row] = self.now

    def _charge(self, job: SimJob) -> None:
        held = len(job.members)
        if held and self.now > job.changed_at:
            job.outcome.gpu_s += held * (self.now - job.changed_at)
            self.result.spans.append((job.trace.id, job.changed_at, self.now, held))
        job.changed_at = self.now

    def _end_job(self, job: SimJob) -> None:
        """Take it out; its agents are warm again."""
        self._charge(job)
        job.version += 1
        agent_job = self.agents.data["job"]
        for agent in job.members:
            agent.job = None
            agent_job[agent.row] = -1
            self._warm(agent)
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
        job.outcome.end_s = self.now
        self._end_job(job)

    def _on_up(self, job: SimJob) -> None:
        """All members are there: look up, or tune."""
        if job.lookup_s > 0:
            self._job_phase(job, JobPhase.LOOKUP)
            self.push(self.now + job.lookup_s, "looked", job)
        else:
            self._run(job)

    def _on_looked(self, job: SimJob) -> None:
        job.lookup_s = 0.0
        job.outcome.looked_up = True
        data, row = self.jobs.data, job.row
        data["bank_factor_mid"][row] = data["bank_factor_hi"][row] = 1.0
        data["total"][row] *= job.trace.bank_factor
        self._set_rate(job, 0.0, self._left(job) * job.trace.bank_factor)
        self._run(job)

    def _run(self, job: SimJob) -> None:
        rate = self.speeds[job.pool][len(job.members)] / job.trace.step_s
        self._set_rate(job, rate)
        self._job_phase(job, JobPhase.RUNNING)
        self.push(self.now + self._left(job) / rate, "done", job)

    def _on_resize(self, job: SimJob) -> None:
        """The new membership meets at a step boundary."""
        self._stand_still(job, self.pools[job.pool].resize_s)

    def _stand_still(self, job: SimJob, seconds: float) -> None:
        job.version += 1
        self._set_rate(job, 0.0)
        job.up_at = self.now + seconds
        self.push(job.up_at, "up", job)

    # -- agents

    def _on_queued(self, agent: SimAgent) -> None:
        """Slurm starts the allocation."""
        start = self._spread(self.pools[agent.pool].start_s)
        self._enter(agent, AgentPhase.STARTING, self.now + self.pools[agent.pool].start_s)
        self.agents.data["ends_at"][agent.row] = self.now + self.options.walltime_s
        self.push(self.now + start, "ready", agent)
        if self.options.losses_per_gpu_hour > 0:
            self._push_fixed(self.now + self.rng.exponential(3600.0 / self.options.losses_per_gpu_hour), "lost", agent)
        if math.isfinite(self.options.walltime_s):
            self._push_fixed(self.now + self.options.walltime_s, "walltime", agent)

    def _push_fixed(self, at: float, kind: str, agent: SimAgent) -> None:
        """An event that no change of phase voids."""
        self.push(at, kind, _Whatever(agent))  # type: ignore[arg-type]

    def _warm(self, agent: SimAgent) -> None:
        self._enter(agent, AgentPhase.WARM, self.now)
        self.push(self.now + self.options.idle_limit_s, "idle_guard", agent)

    def _on_ready(self, agent: SimAgent) -> None:
        self._warm(agent)

    _on_freed = _on_ready

    def _on_idle_guard(self, agent: SimAgent) -> None:
        self._remove_agent(agent)

    _on_gone = _on_idle_guard

    def _remove_agent(self, agent: SimAgent) -> None:
        if agent.reserved is not None:
            agent.reserved.reserved.discard(agent)
        self.count[_BUCKET[AgentPhase(agent.phase)]] -= 1
        agent.version += 1
        del self.agent_of[agent.id]
        self.agents.remove(agent.row)
        agent.row = -1

    def _on_lost(self, holder: _Whatever) -> None:
        self._lose(holder.agent, self.options.checkpoint_s)

    def _on_walltime(self, holder: _Whatever) -> None:
        self._lose(holder.agent, 0.0)

    def _lose(self, agent: SimAgent, rollback_s: float) -> None:
        if agent.row < 0:
            return
        job = agent.job
        self._remove_agent(agent)
        if job is None:
            return
        self._charge(job)
        job.members.remove(agent)
        agent.job = None
        lookup = job.lookup_s
        if job.members:
            self._stand_still(job, LOSS_NOTICED_S + self.pools[job.pool].resize_s)
            self._job_phase(job, JobPhase.STARTING)
        else:
            data, row = self.jobs.data, job.row
            redo = float(data["rate"][row]) * float(self.rng.uniform(0, rollback_s))
            self._set_rate(job, 0.0, min(self._left(job) + redo, float(data["total"][row])))
            job.version += 1
            self._job_phase(job, JobPhase.WAITING)
        job.lookup_s = lookup

    # -- actions

    def apply(self, action: act.Action) -> None:
        """Do what a policy asked for. Raises StateError where it may not ask for that."""
        self.result.actions += 1
        if isinstance(action, act.Assign):
            self._assign(self._job(action.job), [self._agent(name) for name in action.agents], action.lookup_s)
        elif isinstance(action, act.Request):
            self._request(action)
        elif isinstance(action, act.Release):
            self._release(self._agent(action.agent))
        elif isinstance(action, act.SwitchModel):
            self._switch(action)
        elif isinstance(action, act.Demote | act.Restore):
            job = self._job(action.job)
            self.jobs.data["best_effort"][job.row] = isinstance(action, act.Demote)
            job.outcome.demoted = isinstance(action, act.Demote)
        else:
            job = self._job(action.job)
            if isinstance(action, act.Reject) and (job.members or math.isfinite(job.outcome.start_s)):
                raise StateError(f"{action.job} has run and cannot be rejected")
            job.outcome.rejected = isinstance(action, act.Reject)
            job.outcome.stopped = isinstance(action, act.Stop)
            self._end_job(job)
            self.dirty = True

    def _job(self, name: str) -> SimJob:
        if name not in self.job_of:
            raise StateError(f"there is no active job {name}")
        return self.job_of[name]

    def _agent(self, name: str) -> SimAgent:
        if name not in self.agent_of:
            raise StateError(f"there is no agent {name}")
        return self.agent_of[name]

    def _request(self, action: act.Request) -> None:
        if self.agents.n >= self.options.gpus:
            raise StateError(f"a request beyond the limit of {self.options.gpus} GPUs")
        self.serial += 1
        reserved = self._job(action.job) if action.job is not None else None
        agent = SimAgent(f"a{self.serial}", action.pool, reserved)
        profile = self.pools[action.pool]
        at = self.now + self.options.spool_s
        values = {
            "pool": action.pool, "phase": AgentPhase.REQUESTED, "job": -1 if reserved is None else reserved.row,
            "gpus": 1, "since": self.now, "ready_at": at + profile.queue_s + profile.start_s, "ends_at": math.inf,
        }  # fmt: skip
        self.agents.append(agent, agent.id, values)
        self.agent_of[agent.id] = agent
        self.count[3] += 1
        self.result.allocations += 1
        if reserved is not None:
            reserved.reserved.add(agent)
        self.push(at + self._spread(profile.queue_s), "queued", agent)

    def _release(self, agent: SimAgent) -> None:
        if agent.phase == AgentPhase.REQUESTED:
            self._remove_agent(agent)
        elif agent.phase in (AgentPhase.STARTING, AgentPhase.WARM):
            self._enter(agent, AgentPhase.DRAINING)
            self.push(self.now + self.options.spool_s, "gone", agent)
        else:
            raise StateError(f"{agent.id} is {AgentPhase(agent.phase).name} and cannot be released")

    def _unreserve(self, agent: SimAgent) -> None:
        if agent.reserved is not None:
            agent.reserved.reserved.discard(agent)
            agent.reserved = None
            self.agents.data["job"][agent.row] = -1

    def _switch(self, action: act.SwitchModel) -> None:
        agent = self._agent(action.agent)
        if agent.phase != AgentPhase.WARM:
            raise StateError(f"{agent.id} is {AgentPhase(agent.phase).name} and cannot switch its model")
        self._unreserve(agent)
        agent.pool = action.pool
        self.agents.data["pool"][agent.row] = action.pool
        if action.job is not None:
            agent.reserved = self._job(action.job)
            agent.reserved.reserved.add(agent)
            self.agents.data["job"][agent.row] = agent.reserved.row
        ready = self.now + self.options.spool_s + self.pools[action.pool].switch_s
        self._enter(agent, AgentPhase.SWITCHING, ready)
        self.push(ready, "ready", agent)

    def _assign(self, job: SimJob, members: list[SimAgent], lookup_s: float) -> None:
        self._check_members(job, members)
        old = job.members
        self._charge(job)
        effect = self.now + self.options.spool_s
        stay = set(members)
        for agent in old:
            if agent not in stay:
                agent.job = None
                self.agents.data["job"][agent.row] = -1
                self._enter(agent, AgentPhase.BUSY, effect)
                self.push(effect, "freed", agent)
        for agent in members:
            if agent.job is None:
                self._unreserve(agent)
                agent.job = job
                self.agents.data["job"][agent.row] = job.row
                self._enter(agent, AgentPhase.BUSY, self.now)
        job.members = members
        if not members:
            job.version += 1
            self._set_rate(job, 0.0)
            self._job_phase(job, JobPhase.WAITING)
            job.lookup_s = 0.0
            job.outcome.pauses += 1
        elif not old:
            job.outcome.start_s = min(job.outcome.start_s, effect)
            looked = job.outcome.looked_up or not self.options.bank
            job.lookup_s = 0.0 if looked or lookup_s <= 0 else self.pools[job.pool].lookup_s
            self._job_phase(job, JobPhase.STARTING)
            job.version += 1
            job.up_at = effect + self.pools[job.pool].warm_s
            self.push(job.up_at, "up", job)
        else:
            self._resize(job, old, effect)

    def _resize(self, job: SimJob, old: list[SimAgent], effect: float) -> None:
        job.outcome.resizes += 1
        phase = int(self.jobs.data["phase"][job.row])
        grown = any(agent not in old for agent in job.members)
        joined = effect + (self.pools[job.pool].warm_s if grown else 0.0)
        if phase == JobPhase.LOOKUP and old[0] in job.members:
            return  # the lookup goes on; tuning begins with whoever is there then
        if phase == JobPhase.RUNNING:
            self._job_phase(job, JobPhase.STARTING)
            self.push(joined, "resize", job)
            return
        # not yet up (or in the middle of another resize): all meet once more
        job.version += 1
        self._set_rate(job, 0.0)
        self._job_phase(job, JobPhase.STARTING)
        job.up_at = max(joined, job.up_at) if job.up_at > self.now else joined
        self.push(job.up_at, "up", job)

    def _check_members(self, job: SimJob, members: list[SimAgent]) -> None:
        if len(set(members)) != len(members) or len(members) > job.trace.max_gpus:
            raise StateError(f"{job.trace.id} cannot have these {len(members)} members")
        if members and len(members) < job.trace.min_gpus:
            raise StateError(f"{job.trace.id} needs {job.trace.min_gpus} GPUs at least")
        for agent in members:
            warm = agent.phase == AgentPhase.WARM and agent.job is None
            if not (warm or agent.job is job) or agent.pool != job.pool:
                raise StateError(f"{agent.id} is not free for {job.trace.id}")


class _Whatever:
    """Carries an agent through an event that its changes of phase do not void."""

    __slots__ = ("agent", "version")

    def __init__(self, agent: SimAgent) -> None:
        self.agent = agent
        self.version = 0
