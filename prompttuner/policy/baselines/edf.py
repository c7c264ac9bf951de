"""Earliest deadline first: each job, in order of deadlines, gets the fewest GPUs that meet it, and keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from prompttuner.policy.baselines.skipping import fewest
from prompttuner.policy.contract.plan import Action, Assign, Demote, Plan, Reason, Release, Request, SwitchModel, Why
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase, Snapshot
from prompttuner.policy.estimate import Estimate, estimate, queue_order, room
from prompttuner.policy.prompttuner.limiting import outside_limits
from prompttuner.policy.stopping import next_stop, stops
from prompttuner.words import Counted

__all__ = ["Edf"]

_COMING = (AgentPhase.STARTING, AgentPhase.SWITCHING, AgentPhase.REQUESTED)


@dataclass(slots=True)
class _Supply:
    """Agents not yet promised to a job in this pass, as rows; idle ones the longest idle last."""

    idle: list[list[int]]
    coming: list[list[int]]
    room: int
    """Allocations that may still be asked for."""
    actions: list[Action] = field(default_factory=list)

    def obtainable(self, pool: int) -> int:
        others = sum(len(rows) for p, rows in enumerate(self.idle) if p != pool)
        return len(self.idle[pool]) + len(self.coming[pool]) + self.room + others


@dataclass(frozen=True, slots=True)
class Edf:
    """Earliest deadline first without resizing: simple, robust, the yardstick for the rest.

    ``keep_s``: seconds an idle agent is kept for the next job (None: the site's idle limit); ``bank``: use the
    Prompt Bank where a lookup is expected to pay; ``skip``: skip a lookup where it would miss the deadline.
    """

    keep_s: float | None = None
    bank: bool = True
    skip: bool = True
    name: str = "edf"

    def plan(self, snapshot: Snapshot) -> Plan:
        """Assign, request, switch and release by one pass over the waiting jobs in order of their deadlines."""
        jobs = snapshot.jobs
        guess = estimate(snapshot, self.bank)
        supply = _supply(snapshot)
        notes: dict[str, Reason] = {}
        stopping = jobs.stop_on_miss & (snapshot.now > jobs.deadline)
        supply.actions.extend(stops(snapshot, stopping))
        for row in outside_limits(snapshot, guess.members):
            _rescale(snapshot, supply, row, notes)
        waiting = np.flatnonzero((jobs.phase == JobPhase.WAITING) & ~stopping)
        for row in queue_order(snapshot, waiting).tolist():
            self._serve(snapshot, guess, supply, row, notes)
        wake = self._release(snapshot, supply)
        return Plan(supply.actions, min(wake, next_stop(snapshot)), notes)

    def _serve(self, snapshot: Snapshot, guess: Estimate, supply: _Supply, row: int, notes: dict[str, Reason]) -> None:
        jobs, pool = snapshot.jobs, int(snapshot.jobs.pool[row])
        name, low = jobs.id[row], max(int(jobs.min_gpus[row]), 1)
        left = float(jobs.deadline[row]) - snapshot.now
        timely = not jobs.best_effort[row] and np.isfinite(left)
        wanted, looks = low, bool(guess.lookup[row])
        if timely:
            wanted, looks = fewest(snapshot, guess, row, low, left, self.skip)
        if timely and not wanted:
            wanted = low
            why: Reason = Why(
                "its deadline in {:.0f} s cannot be met: even {} would take {:.0f} s",
                left,
                Counted(int(guess.top[row]), "GPU"),
                guess.seconds(row, pool, int(guess.top[row])),
            )
            supply.actions.append(Demote(name, why))
        wanted = max(low, min(wanted, supply.obtainable(pool)))
        idle = supply.idle[pool]
        if len(idle) >= wanted:
            taken = [idle.pop() for _ in range(wanted)]
            took = guess.seconds(row, pool, wanted)
            text = "{}, the fewest that end before its deadline: {:.0f} s predicted, {:.0f} s left"
            gpus = Counted(wanted, "GPU")
            why = Why(text, gpus, took, left) if timely else Why("best effort: {}, now idle", gpus)
            if looks != guess.lookup[row]:
                why = Why("{}, the fewest that end before its deadline, in {:.0f} s, without a lookup", gpus, left)
            lookup = snapshot.pools[pool].lookup_s if looks else 0.0
            supply.actions.append(Assign(name, tuple(snapshot.agents.id[a] for a in taken), why, lookup))
            return
        notes[name] = self._wait(snapshot, supply, row, wanted)

    def _wait(self, snapshot: Snapshot, supply: _Supply, row: int, wanted: int) -> Reason:
        """Reserve what is there, ask for what is missing; returns why the job waits."""
        pool, name = int(snapshot.jobs.pool[row]), snapshot.jobs.id[row]
        idle, coming = supply.idle[pool], supply.coming[pool]
        held = min(len(idle), wanted)
        del idle[len(idle) - held :]
        awaited = min(len(coming), wanted - held)
        del coming[len(coming) - awaited :]
        short = wanted - held - awaited
        profile = snapshot.pools[pool]
        asked = 0
        while asked < short and supply.room >= 1:
            supply.room -= 1
            asked += 1
            text = "job {} needs {}, {} there so far; a cold start takes about {:.0f} s"
            cold = profile.queue_s + profile.start_s
            supply.actions.append(Request(pool, Why(text, name, Counted(wanted, "GPU"), held + awaited, cold), name))
        switched = 0
        others = _idle_elsewhere(supply, pool)
        while asked + switched < short and (agent := next(others, None)) is not None:
            switched += 1
            text = "no GPU is left to ask for, and job {} needs {} with {}"
            supply.actions.append(SwitchModel(snapshot.agents.id[agent], pool, Why(text, name, wanted, profile.name)))
        missing = short - asked - switched
        text = "waits for {}: {} idle, {} starting, {} asked for now, {} more when other jobs end"
        return Why(text, Counted(wanted, "GPU"), held, awaited, asked + switched, missing)

    def _release(self, snapshot: Snapshot, supply: _Supply) -> float:
        """Give back what no job waits for; returns when the next agent will have been idle for too long."""
        agents, limits, now = snapshot.agents, snapshot.limits, snapshot.now
        keep = limits.idle_limit_s if self.keep_s is None else min(self.keep_s, limits.idle_limit_s)
        keep = keep if limits.warm_pool else 0.0
        wake = float("inf")
        for row in (a for rows in supply.idle for a in rows):
            idle = now - float(agents.since[row])
            if idle >= keep:
                text = "idle for {:.0f} s, no job waits for it, idle agents are kept for {:.0f} s"
                supply.actions.append(Release(agents.id[row], Why(text, idle, keep)))
            else:
                wake = min(wake, now + keep - idle)
        for row in (a for rows in supply.coming for a in rows):
            if agents.phase[row] == AgentPhase.REQUESTED:
                supply.actions.append(Release(agents.id[row], "still queued, and no job waits for it any more"))
        return wake


def _rescale(snapshot: Snapshot, supply: _Supply, row: int, notes: dict[str, Reason]) -> None:
    """Bring a running job back within its limits: shrink at once, grow once all that is missing is idle."""
    jobs, agents, pool = snapshot.jobs, snapshot.agents, int(snapshot.jobs.pool[row])
    have = np.flatnonzero((agents.phase == AgentPhase.BUSY) & (agents.job == row)).tolist()
    low, high, idle, coming = int(jobs.min_gpus[row]), int(jobs.max_gpus[row]), supply.idle[pool], supply.coming[pool]
    missing = low - len(have)
    if missing <= 0 or len(idle) >= missing:
        members = have[:high] + [idle.pop() for _ in range(max(missing, 0))]
        why = Why("has {} and may have {} to {}", Counted(len(have), "GPU"), low, high)
        supply.actions.append(Assign(jobs.id[row], tuple(agents.id[a] for a in members), why))
        return
    awaited = min(len(coming), missing - len(idle))
    del coming[len(coming) - awaited :]
    asked = min(missing - len(idle) - awaited, supply.room)
    supply.room -= asked
    idle.clear()
    why = Why("job {} needs {} at least and has {}", jobs.id[row], Counted(low, "GPU"), len(have))
    supply.actions.extend(Request(pool, why, jobs.id[row]) for _ in range(asked))
    notes[jobs.id[row]] = Why("has {} and needs {} at least; {} asked for now", Counted(len(have), "GPU"), low, asked)


def _supply(snapshot: Snapshot) -> _Supply:
    agents = snapshot.agents
    count = len(snapshot.pools)
    idle: list[list[int]] = [[] for _ in range(count)]
    coming: list[list[int]] = [[] for _ in range(count)]
    for row in np.flatnonzero((agents.phase == AgentPhase.WARM) & (agents.pool >= 0)).tolist():
        idle[int(agents.pool[row])].append(row)
    for rows in idle:
        rows.sort(key=lambda a: (float(agents.since[a]), a))
    for row in np.flatnonzero(np.isin(agents.phase, _COMING) & (agents.pool >= 0)).tolist():
        coming[int(agents.pool[row])].append(row)
    for rows in coming:
        rows.sort(key=lambda a: (-float(agents.ready_at[a]), a))
    return _Supply(idle, coming, room(snapshot))


def _idle_elsewhere(supply: _Supply, pool: int) -> Iterator[int]:
    """Idle agents of other pools, taken one by one, the longest idle first."""
    for other, rows in enumerate(supply.idle):
        while other != pool and rows:
            yield rows.pop(0)
