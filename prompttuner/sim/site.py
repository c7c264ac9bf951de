"""The simulated site: a world to which a policy's actions are applied, each checked for whether it is legal."""

from __future__ import annotations

import math

from prompttuner.errors import StateError
from prompttuner.policy.contract import plan as act
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase
from prompttuner.sim.entities import SimAgent, SimJob
from prompttuner.sim.world import World

__all__ = ["Site"]


class Site(World):
    """What a policy orders takes effect one spool delay later; costs run from the start of an allocation."""

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
            self.end_job(job)
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
        told, at = self.told[action.pool], self.now + self.options.spool_s
        ready_at = self._expected() + told.queue_s + told.start_s
        values = {
            "pool": action.pool, "phase": AgentPhase.REQUESTED, "job": -1 if reserved is None else reserved.row,
            "gpus": 1, "since": self.now, "ready_at": ready_at, "ends_at": math.inf,
        }  # fmt: skip
        self.agents.append(agent, agent.id, values)
        self.agent_of[agent.id] = agent
        self.count[3] += 1
        self.result.allocations += 1
        if reserved is not None:
            reserved.reserved.add(agent)
        self.push(at + self.spread(self.pools[action.pool].queue_s), "queued", agent)

    def _expected(self) -> float:
        """When an order given now is expected to be heard: a live controller counts from its own word."""
        return self.now if self.options.daemon else self.now + self.options.spool_s

    def _release(self, agent: SimAgent) -> None:
        if agent.phase == AgentPhase.REQUESTED:
            self.remove_agent(agent)
        elif agent.phase in (AgentPhase.STARTING, AgentPhase.WARM):
            self.enter(agent, AgentPhase.DRAINING)
            self.push(self.now + self.options.spool_s + self.options.release_s, "gone", agent)
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
        self.enter(agent, AgentPhase.SWITCHING, self._expected() + self.told[action.pool].switch_s)
        self.push(self.now + self.options.spool_s + self.pools[action.pool].switch_s, "ready", agent)

    def _assign(self, job: SimJob, members: list[SimAgent], lookup_s: float) -> None:
        self._check_members(job, members)
        old = job.members
        self.charge(job)
        effect = self.now + self.options.spool_s
        stay = set(members)
        for agent in old:
            if agent not in stay:
                agent.job = None
                self.agents.data["job"][agent.row] = -1
                if self.options.daemon:
                    self.warm(agent)  # its row is free at once; its next lease is heard no sooner than this one's end
                else:
                    self.enter(agent, AgentPhase.BUSY, effect)
                    self.push(effect, "freed", agent)
        for agent in members:
            if agent.job is None:
                self._unreserve(agent)
                agent.job = job
                self.agents.data["job"][agent.row] = job.row
                self.enter(agent, AgentPhase.BUSY, self.now)
        job.members = members
        if not members:
            job.version += 1
            self.set_rate(job, 0.0)
            self.job_phase(job, JobPhase.WAITING)
            job.lookup_s = 0.0
            job.outcome.pauses += 1
        elif not old:
            job.outcome.start_s = min(job.outcome.start_s, effect)
            looked = job.outcome.looked_up or not self.options.bank
            job.lookup_s = 0.0 if looked or lookup_s <= 0 else self.pools[job.pool].lookup_s
            self.job_phase(job, JobPhase.STARTING)
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
            self.job_phase(job, JobPhase.STARTING)
            self.push(joined, "resize", job)
            return
        # not yet up (or in the middle of another resize): all meet once more
        job.version += 1
        self.set_rate(job, 0.0)
        self.job_phase(job, JobPhase.STARTING)
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
