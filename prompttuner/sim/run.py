"""The event loop: a policy object, the very one that runs live, against the simulated site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from prompttuner.errors import SpecError, StateError
from prompttuner.policy.contract.plan import Policy
from prompttuner.policy.contract.snapshot import PoolProfile
from prompttuner.sim.options import SimOptions, SimResult
from prompttuner.sim.site import Site
from prompttuner.trace.job import TraceJob
from prompttuner.words import Counted

__all__ = ["simulate"]

STALL_PLANS = 2000
"""Progress is looked at once in so many plans."""
STALL_STARTS = 50
"""So many cold starts without progress, while the policy keeps acting, are no bad luck."""
STALL_S = 30 * 86400.0
"""As long as that a policy may do nothing at all, waiting for a time of its own."""


def simulate(
    trace: Sequence[TraceJob],
    profiles: Mapping[str, PoolProfile],
    policy: Policy,
    options: SimOptions | None = None,
    told: Mapping[str, PoolProfile] | None = None,
) -> SimResult:
    """Run the trace to the end of its last job. Deterministic: equal arguments give equal results.

    Decisions are taken on the grid of ``tick_s`` after anything happened (or when the policy asked to be woken) and
    take effect ``spool_s`` later. With ``look_s`` a new job is decided on between two ticks, and the grid begins anew.

    Args:
        profiles: by LLM, what starts and pauses take.
        told: the same as the policy believes it; the profiles themselves where not given.

    Raises:
        SpecError: an empty trace, or an LLM without a profile.
        StateError: the policy asked for something illegal, left jobs behind for ever, or acts without end and without
            any job coming nearer to its own.
    """
    options = options or SimOptions()
    missing = sorted({job.llm for job in trace} - set(profiles))
    if not trace or missing:
        raise SpecError(f"no profile is known of {', '.join(missing)}" if missing else "the trace holds no jobs")
    wide = [job.id for job in trace if job.min_gpus > options.gpus]
    if wide:
        raise SpecError(f"job {wide[0]} needs more than the {options.gpus} GPUs there are")
    world = Site(trace, profiles, options, policy.name, told)
    queue = sorted(trace, key=lambda job: (job.submit_s, job.id))
    _loop(world, policy, queue, options)
    result = world.result
    result.busy_s, result.startup_s, result.idle_s = world.spent[:3]
    return result


def _loop(world: Site, policy: Policy, queue: list[TraceJob], options: SimOptions) -> None:
    tick, events, upcoming = options.tick_s, world.events, 0
    tick_at = wake = math.inf
    decided = -1.0
    origin = 0.0
    watch = _Watch(world)

    def on_grid(at: float) -> float:
        return origin + math.ceil((at - origin) / tick) * tick

    while upcoming < len(queue) or world.jobs.n:
        arrival = queue[upcoming].submit_s if upcoming < len(queue) else math.inf
        event = events[0][0] if events else math.inf
        soonest = min(arrival, event, tick_at)
        if math.isinf(soonest) or soonest > options.horizon_s:
            left = ", ".join(world.jobs.ids[:3])
            raise StateError(
                f"policy {policy.name} leaves {Counted(world.jobs.n, 'job')} behind at {world.now:.0f} s: {left} ..."
            )
        if event <= tick_at and event <= arrival:
            world.pop()
        elif arrival <= tick_at:
            world.advance(arrival)
            world.arrive(queue[upcoming])
            upcoming += 1
            if arrival + options.look_s < min(tick_at, on_grid(arrival)):
                origin = tick_at = arrival + options.look_s
        else:
            world.advance(tick_at)
            wake = _decide(world, policy)
            if world.result.plans % STALL_PLANS == 0:
                watch.look(world, policy, upcoming)
            decided, tick_at = world.now, math.inf
        if world.dirty:
            grid = on_grid(world.now)
            tick_at = min(tick_at, grid if grid > decided else grid + tick)
        elif wake < math.inf:
            tick_at = min(tick_at, on_grid(max(wake, world.now + 1e-9)))
        if options.daemon and (events or upcoming < len(queue)):
            tick_at = min(tick_at, on_grid(world.now + 1e-9))


class _Watch:
    """Notices a simulation that would never end: nothing was submitted or ended, and never was less work left."""

    def __init__(self, world: Site) -> None:
        slowest = max(max(p.queue_s + p.start_s, p.switch_s) for p in world.pools)
        self._patience_s = max(STALL_STARTS * slowest, 3600.0)
        self._best: tuple[int, float] = (-1, math.inf)
        self._since, self._actions = 0.0, 0

    def look(self, world: Site, policy: Policy, arrived: int) -> None:
        """Raises StateError."""
        gone = 2 * arrived - world.jobs.n  # grows with each arrival and with each end
        left = float(world.jobs.data["left"][: world.jobs.n].sum())
        if gone > self._best[0] or left < self._best[1]:
            self._best, self._since, self._actions = (gone, left), world.now, world.result.actions
            return
        for_s, acted = world.now - self._since, world.result.actions > self._actions
        if for_s > (self._patience_s if acted else STALL_S):
            names = ", ".join(world.jobs.ids[:3])
            raise StateError(
                f"policy {policy.name} makes no progress: no job has come nearer to its end since {self._since:.0f} s "
                f"({Counted(world.jobs.n, 'job')} left at {world.now:.0f} s: {names} ...). An idle_limit_s "
                f"({world.options.idle_limit_s:g} s here) below the time between two plans ends agents before they are "
                "used; losses that come faster than checkpoints undo all work"
            )


def _decide(world: Site, policy: Policy) -> float:
    """One tick; returns when the policy wants the next."""
    world.see()
    plan = policy.plan(world.observe())
    world.dirty = False
    for action in plan.actions:
        world.apply(action)
    result = world.result
    result.plans += 1
    usage = (world.now, world.count[0], world.count[1], world.count[2])
    if not result.usage or result.usage[-1][1:] != usage[1:]:
        result.usage.append(usage)
    return max(plan.wake_at, world.now + world.options.tick_s)
