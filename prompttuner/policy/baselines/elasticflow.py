"""ElasticFlow (Gu et al., ASPLOS 2023) behind our policy interface, as released and repaired.

It takes the cluster for its own: GPUs are asked for when a plan needs them, stay warm up to the site's idle limit, and
load another LLM where a job of another pool needs them. Everything is planned anew at each slot's edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prompttuner.policy.baselines.elasticflow_act import Target, realise
from prompttuner.policy.baselines.elasticflow_admit import Admission
from prompttuner.policy.baselines.elasticflow_share import EfJob, left_over, place_all
from prompttuner.policy.contract.plan import Action, Plan, Reject, Why
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase, Snapshot
from prompttuner.policy.estimate import Estimate, estimate
from prompttuner.policy.stopping import next_stop, stops

__all__ = ["ElasticFlow", "ElasticFlowFixed"]

FAR = 30 * 86400.0
"""A best-effort job is planned as if it were due so many seconds from now."""


@dataclass(frozen=True, slots=True)
class ElasticFlow:
    """ElasticFlow as it was released.

    Start-up is ignored, arrivals of a slot are admitted or rejected together, left-over GPUs go to the job whose
    GPU-time grows most.

    ``slot_s``: scheduling slot (half the keep-alive where that is shorter); ``bank``: with the Prompt Bank
    (``skip``: and the right to skip a lookup where it would miss the deadline); ``diminishing``: left-over GPUs to the
    smallest growth of GPU-time, as the paper has it; ``one_by_one``: admit arrivals one by one; ``charge_start``: take
    start-up and lookup off the time left; ``drop_late``: jobs that will be late anyway neither block arrivals nor take
    GPUs from the others; ``keep_s``: seconds an idle agent is kept (None: the site's idle limit).
    """

    slot_s: float = 10.0
    bank: bool = True
    skip: bool = True
    diminishing: bool = False
    one_by_one: bool = False
    charge_start: bool = False
    drop_late: bool = False
    keep_s: float | None = None
    name: str = "elasticflow"

    def plan(self, snapshot: Snapshot) -> Plan:
        """Nothing within a slot; at its edge: admission, shares, left-over GPUs."""
        jobs, now = snapshot.jobs, snapshot.now
        slot = self._slot(snapshot)
        edge = math.floor(now / slot + 1e-9) * slot
        stopping = jobs.stop_on_miss & (now > jobs.deadline)
        actions: list[Action] = [*stops(snapshot, stopping)]
        if now - edge >= snapshot.tick_s - 1e-9:
            return Plan(actions, min(edge + slot, next_stop(snapshot)))
        guess = estimate(snapshot, self.bank)
        lookup = self._lookups(snapshot, guess)
        rows = np.flatnonzero(~stopping & (jobs.phase != JobPhase.HELD)).tolist()
        efs = {row: self._job(snapshot, guess, bool(lookup[row]), row) for row in rows}
        # submitted since the last edge: not yet admitted, since rejections end a job at once
        new = [row for row in rows if self._is_new(snapshot, row)]
        rejected = self._admit(snapshot, efs, new)
        actions += [Reject(jobs.id[row], why) for row, why in rejected.items()]
        kept = {row: job for row, job in efs.items() if row not in rejected}
        put_off = FAR if self.drop_late else math.inf
        free, _ = place_all(list(kept.values()), snapshot.limits.gpus, now, slot, put_off)
        ordered = sorted(kept.values(), key=lambda job: (job.deadline, job.id))
        shares = {row: job.gpus for row, job in kept.items()}
        left_over(ordered, free, snapshot.limits.gpus, now=now, slot=slot, diminishing=self.diminishing, lazy=True)
        targets = [
            Target(row, job.gpus, shares[row], job.deadline, bool(lookup[row]), job.levels) for row, job in kept.items()
        ]
        acts, notes = realise(snapshot, targets, self._keep(snapshot))
        return Plan([*actions, *acts], min(edge + slot, next_stop(snapshot)), notes)

    def _slot(self, snapshot: Snapshot) -> float:
        """Seconds of a slot: half the keep-alive where that is less than ``slot_s``.

        An agent that starts, or loses its job, within a slot would otherwise be gone before the edge at which it would
        be used.
        """
        return min(self.slot_s, max(self._keep(snapshot) / 2, snapshot.tick_s))

    def _keep(self, snapshot: Snapshot) -> float:
        site_s = snapshot.limits.idle_limit_s
        return site_s if self.keep_s is None else min(self.keep_s, site_s)

    def _is_new(self, snapshot: Snapshot, row: int) -> bool:
        """Came since the last edge, and did not come to wait anew after an edge at which it was admitted (a loss)."""
        jobs = snapshot.jobs
        submit = float(jobs.submit[row])
        timed = not jobs.best_effort[row] and math.isfinite(float(jobs.deadline[row]))
        slot = self._slot(snapshot)
        first_edge = math.ceil(submit / slot - 1e-9) * slot
        fresh = jobs.phase[row] == JobPhase.WAITING and float(jobs.phase_since[row]) <= max(submit, first_edge)
        return timed and fresh and snapshot.now - submit <= slot + snapshot.tick_s

    def _admit(self, snapshot: Snapshot, efs: dict[int, EfJob], new: list[int]) -> dict[int, Why]:
        """Rows to reject, and why."""
        fresh = set(new)
        admitted = [job for row, job in efs.items() if row not in fresh]
        gpus, now, slot = snapshot.limits.gpus, snapshot.now, self._slot(snapshot)
        if not new:
            return {}
        if self.drop_late:
            hopeless = {job.id for job in place_all(admitted, gpus, now, slot)[1]}
            admitted = [job for job in admitted if job.id not in hopeless]
        admission, arrivals = Admission(admitted, gpus, now, slot), [efs[row] for row in new]
        one_by_one = self.one_by_one
        taken = admission.add_each(arrivals) if one_by_one else [admission.add(arrivals)] * len(new)
        text = "not admitted: with it (and {} more of the same slot) a job, it or another one, would be late"
        more = 0 if one_by_one else len(new) - 1
        return {row: Why(text, more) for row, ok in zip(new, taken, strict=True) if not ok}

    def _job(self, snapshot: Snapshot, guess: Estimate, lookup: bool, row: int) -> EfJob:
        jobs, now = snapshot.jobs, snapshot.now
        pool, low = int(jobs.pool[row]), max(int(jobs.min_gpus[row]), 1)
        top = int(guess.top[row])
        sizes = [2**k for k in range(top.bit_length()) if low <= 2**k <= top] or [low]
        deadline = float(jobs.deadline[row])
        if jobs.best_effort[row] or not math.isfinite(deadline):
            deadline = now + FAR
        elif self.charge_start:
            deadline -= self._overhead(snapshot, guess, lookup, row)
        work = float(guess.work[row] if lookup else guess.work_plain[row])
        table = guess.speeds[pool]
        return EfJob(jobs.id[row], max(work, 1e-6), deadline, tuple(sizes), tuple(table[n] for n in sizes))

    def _overhead(self, snapshot: Snapshot, guess: Estimate, lookup: bool, row: int) -> float:
        """Seconds from now in which the job does not tune: start of its GPUs and lease, lookup, one resize."""
        pool = int(snapshot.jobs.pool[row])
        profile, agents = snapshot.pools[pool], snapshot.agents
        fixed = float(guess.fixed[row]) - (0.0 if lookup or not guess.lookup[row] else profile.lookup_s)
        if guess.members[row]:
            return fixed + profile.resize_s
        idle = agents.phase == AgentPhase.WARM
        if bool((idle & (agents.pool == pool)).any()):
            return fixed
        return fixed + (profile.switch_s if bool(idle.any()) else profile.queue_s + profile.start_s)

    def _lookups(self, snapshot: Snapshot, guess: Estimate) -> np.ndarray:
        """Whether each job's plan has a lookup: where it pays, unless only doing without meets the deadline."""
        jobs = snapshot.jobs
        lookup = guess.lookup.copy()
        if not self.skip:
            return lookup
        for row in np.flatnonzero(lookup & (jobs.phase == JobPhase.WAITING) & ~jobs.best_effort).tolist():
            pool, left = int(jobs.pool[row]), float(jobs.deadline[row]) - snapshot.now
            speed = guess.speeds[pool][int(guess.top[row])]
            plain = float(guess.fixed[row]) - snapshot.pools[pool].lookup_s + float(guess.work_plain[row]) / speed
            lookup[row] = not plain <= left < float(guess.fixed[row]) + float(guess.work[row]) / speed
        return lookup


@dataclass(frozen=True, slots=True)
class ElasticFlowFixed(ElasticFlow):
    """Repaired: left-over GPUs by diminishing returns, arrivals one by one, start-up counted, late jobs last."""

    diminishing: bool = True
    one_by_one: bool = True
    charge_start: bool = True
    drop_late: bool = True
    name: str = "elasticflow-fixed"
