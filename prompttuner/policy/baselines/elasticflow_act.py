"""From the sizes that ElasticFlow wants to actions: members, requests, switches of model, releases."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from prompttuner.policy.contract.plan import Action, Assign, Reason, Release, Request, SwitchModel, Why
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase, Snapshot
from prompttuner.words import Counted

__all__ = ["Target", "realise"]

_COMING = (AgentPhase.STARTING, AgentPhase.SWITCHING, AgentPhase.REQUESTED)


@dataclass(frozen=True, slots=True)
class Target:
    """What one job shall have from now on."""

    row: int
    gpus: int
    share: int
    """Its minimum satisfactory share now; ``gpus`` beyond it are left-over ones."""
    deadline: float
    lookup: bool
    levels: tuple[int, ...]


@dataclass(slots=True)
class _Supply:
    idle: list[list[int]]
    coming: list[int]
    """Agents on their way, by pool."""
    room: int
    members: dict[int, list[int]]
    actions: list[Action] = field(default_factory=list)
    notes: dict[str, Reason] = field(default_factory=dict)


def realise(snapshot: Snapshot, targets: list[Target], keep_s: float) -> tuple[list[Action], dict[str, Reason]]:
    """Actions and notes.

    Shrinking first; then jobs by deadline take idle GPUs, switch others' models, ask for more; what stays idle is kept
    for ``keep_s`` seconds. A job grows at once to the largest of its levels that is there, and to its target when the
    rest arrives.
    """
    supply = _supply(snapshot)
    ordered = sorted(targets, key=lambda t: (t.deadline, t.row))
    for target in ordered:
        if target.gpus < len(supply.members.get(target.row, ())):
            _shrink(snapshot, supply, target)
    short = [(target, _grow(snapshot, supply, target)) for target in ordered]
    for target, missing in short:
        if missing > 0:
            _obtain(snapshot, supply, target, missing)
    _release(snapshot, supply, keep_s)
    return supply.actions, supply.notes


def _supply(snapshot: Snapshot) -> _Supply:
    agents, limits, pools = snapshot.agents, snapshot.limits, len(snapshot.pools)
    idle: list[list[int]] = [[] for _ in range(pools)]
    warm = np.flatnonzero((agents.phase == AgentPhase.WARM) & (agents.pool >= 0))
    for row in warm[np.lexsort((warm, agents.since[warm]))].tolist():
        idle[int(agents.pool[row])].append(row)
    coming = [0] * pools
    for row in np.flatnonzero(np.isin(agents.phase, _COMING) & (agents.pool >= 0)).tolist():
        coming[int(agents.pool[row])] += 1
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero((agents.phase == AgentPhase.BUSY) & (agents.job >= 0)).tolist():
        members.setdefault(int(agents.job[row]), []).append(row)
    room = min(limits.gpus - float(agents.gpus.sum()), limits.allocations - agents.n, limits.requests_now)
    return _Supply(idle, coming, int(max(room, 0)) if limits.gpu_hours_left > 0 else 0, members)


def _shrink(snapshot: Snapshot, supply: _Supply, target: Target) -> None:
    """Keep the first members (its lead stays); a job shorn to nothing pauses at a checkpoint."""
    rows = supply.members[target.row]
    if snapshot.jobs.phase[target.row] == JobPhase.LOOKUP and not target.gpus:
        return  # a lookup cut off would have to be done again
    keep = rows[: max(target.gpus, 0)]
    text = "{} instead of {}: its share that still meets the deadline is {}"
    why = Why(text, Counted(target.gpus, "GPU"), len(rows), target.share)
    supply.actions.append(Assign(snapshot.jobs.id[target.row], tuple(snapshot.agents.id[a] for a in keep), why))
    supply.members[target.row] = keep


def _grow(snapshot: Snapshot, supply: _Supply, target: Target) -> int:
    """Take idle GPUs of its pool; returns how many are missing still."""
    pool = int(snapshot.jobs.pool[target.row])
    have, idle = supply.members.get(target.row, []), supply.idle[pool]
    if target.gpus <= len(have):
        if not target.gpus:
            supply.notes[snapshot.jobs.id[target.row]] = "waits: its plan begins later, earlier deadlines go first"
        return 0
    reach = min(target.gpus, len(have) + len(idle))
    size = max((level for level in target.levels if level <= reach), default=0)
    if size > len(have):
        taken = [idle.pop() for _ in range(size - len(have))]
        extra = max(size - target.share, 0)
        text = "{}: a share of {} meets the deadline, the rest ({}) was left over"
        names = tuple(snapshot.agents.id[a] for a in [*have, *taken])
        lookup_s = snapshot.pools[pool].lookup_s if target.lookup and not have else 0.0
        why = Why(text, Counted(size, "GPU"), target.share, extra)
        supply.actions.append(Assign(snapshot.jobs.id[target.row], names, why, lookup_s))
    if size < target.gpus:
        text = "has {} of {} that are planned: others are starting, loading its LLM, or not yet free"
        supply.notes[snapshot.jobs.id[target.row]] = Why(text, max(size, len(have)), Counted(target.gpus, "GPU"))
    return target.gpus - max(size, len(have))


def _obtain(snapshot: Snapshot, supply: _Supply, target: Target, missing: int) -> None:
    """Count on GPUs that are coming, then switch idle ones of other pools, then ask for more."""
    pool, name = int(snapshot.jobs.pool[target.row]), snapshot.jobs.id[target.row]
    # idle ones of its own pool that do not fill a level yet wait for the rest
    for have in (supply.idle[pool],):
        reserved = min(len(have), missing)
        del have[len(have) - reserved :]
        missing -= reserved
    awaited = min(supply.coming[pool], missing)
    supply.coming[pool] -= awaited
    missing -= awaited
    others = (agent for p, rows in enumerate(supply.idle) if p != pool for agent in list(rows))
    for agent in list(others)[:missing]:
        supply.idle[int(snapshot.agents.pool[agent])].remove(agent)
        why = Why("job {} is planned on {}; idle elsewhere", name, Counted(target.gpus, "GPU"))
        supply.actions.append(SwitchModel(snapshot.agents.id[agent], pool, why))
        missing -= 1
    for _ in range(min(missing, supply.room)):
        supply.room -= 1
        supply.actions.append(Request(pool, Why("job {} is planned on {}", name, Counted(target.gpus, "GPU"))))


def _release(snapshot: Snapshot, supply: _Supply, keep_s: float) -> None:
    agents, limits, now = snapshot.agents, snapshot.limits, snapshot.now
    keep = keep_s if limits.warm_pool else 0.0
    for row in (a for rows in supply.idle for a in rows):
        if now - float(agents.since[row]) >= keep:
            supply.actions.append(
                Release(agents.id[row], Why("idle for {:.0f} s, as long as idle agents are kept", keep))
            )
