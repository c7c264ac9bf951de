"""The cheapest way to run one job by its deadline on the agents that the timeline has."""

from __future__ import annotations

from dataclasses import dataclass

from prompttuner.policy.prompttuner.planning_pass import Pass
from prompttuner.policy.prompttuner.timeline import Entry, Kind

__all__ = ["Choice", "choose"]


@dataclass(slots=True)
class Choice:
    """One way to run a job: ``members`` agents, ``own`` of its pool, ``moved`` of other LLMs, ``cold`` of Slurm."""

    cost: float
    members: int
    own: list[Entry]
    moved: list[Entry]
    """Agents with other LLMs that switch to its."""
    cold: int
    start: float
    seconds: float
    lookup: bool


def choose(work: Pass, row: int, lookup: bool) -> Choice | None:
    """The cheapest way that meets the deadline. Cost: GPU-seconds of the run, of starts and of pauses it causes."""
    timeline, rules, pool = work.timeline, work.rules, int(work.snapshot.jobs.pool[row])
    profile, table, now = work.snapshot.pools[pool], work.guess.speeds[pool], work.snapshot.now
    load = float(work.work[row] if lookup else work.plain[row])
    fixed = float(work.fixed[row]) - (0.0 if lookup or not work.guess.lookup[row] else profile.lookup_s)
    last = float(work.snapshot.jobs.deadline[row]) - work.margin_s - fixed
    top = int(work.guess.top[row])
    moved: list[tuple[float, Entry]] | None = None if rules.switch else []
    cold_at, room = timeline.cold_at[pool], timeline.room
    impatience = 1.0 - rules.patience if rules.delay else 1.0
    best: Choice | None = None
    for n in range(max(int(work.snapshot.jobs.min_gpus[row]), 1), top + 1):
        seconds = fixed + load / table[n]
        latest = last - load / table[n]
        if latest < now:
            continue
        if best is not None and n * seconds >= best.cost:
            break  # the run alone costs more, and the more so the more members
        own = timeline.pick(pool, n, latest - impatience * (latest - now), latest)
        start = max(own[-1][0], now) if own else now
        cost = n * seconds + 2 * profile.resize_s * sum(entry[1] == Kind.SPARE for entry in own)
        short, used, cold = n - len(own), 0, 0
        if short and moved is None:
            moved = timeline.elsewhere(pool, top)
        while moved and used < short and used < len(moved) and moved[used][0] <= latest:
            cost += profile.switch_s
            start = max(start, moved[used][0])
            used += 1
        if used < short and cold_at <= latest and room >= short - used:
            cold = short - used
            cost += cold * (profile.start_s + 1e-3)
            start = max(start, cold_at)
        if used + cold < short:
            # nothing but waiting longer for the pool's own agents may be left
            own, used, cold = timeline.pick(pool, n, latest, latest), 0, 0
            if len(own) < n:
                continue
            start, cost = max(own[-1][0], now), n * seconds
        if best is None or cost < best.cost:
            taken = [entry for _, entry in moved[:used]] if moved else []
            best = Choice(cost, n, own, taken, cold, start, seconds, lookup)
        elif n > best.members + 1:
            break
    return best
