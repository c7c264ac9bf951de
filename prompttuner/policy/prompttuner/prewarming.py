"""Agents that are warmed before their jobs arrive, where bursts have come regularly and a cold start would hurt them.

After the hybrid histogram policy of Shahrad et al., "Serverless in the Wild" (USENIX ATC '20): a window from the head
to the tail (5th and 99th percentile) of the times between invocations, used only where these are representative. Here
what is invoked is a burst of jobs; times are those between the begins of bursts, so few that head and tail are their
least and greatest; and besides being regular, warming ahead must pay (:func:`next_burst`, :func:`agents_for`). A window
opens once after each burst: what has ceased is not waited for again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prompttuner.policy.contract.plan import Request, Why
from prompttuner.policy.contract.snapshot import Arrivals, Floats, PoolProfile
from prompttuner.policy.prompttuner.planning_pass import Pass
from prompttuner.policy.prompttuner.timeline import Kind
from prompttuner.words import Counted

__all__ = ["Burst", "agents_for", "next_burst", "prewarm"]

LATEST = 256
"""Arrivals of a pool that are looked at, at most."""
PERIODS = 8
"""Latest times between bursts that are looked at."""
FEWEST = 3
"""Times between bursts below which nothing is foretold."""
SPREAD = 0.2
"""Standard deviation of these times over their mean, up to which they are regular."""


@dataclass(frozen=True, slots=True)
class Burst:
    """When a pool's next burst is expected. Times on the snapshot's clock."""

    head: float
    """Earliest begin."""
    tail: float
    """Latest begin."""
    period_s: float
    """Mean time between the begins of past bursts."""
    idle_s: float
    """Seconds that an agent which is asked for at the last look before it is due is expected to wait."""
    begins: tuple[float, ...]
    """Of the past bursts it was foretold from."""


def prewarm(work: Pass) -> None:
    """Ask for agents that expected jobs would take, and note in ``work.expected`` how many are to be kept for them.

    Uses only GPUs and requests that no job of now was given, and asks for nothing while a job waits for want of GPUs.
    """
    rules, snapshot, timeline = work.rules, work.snapshot, work.timeline
    limits, now = snapshot.limits, snapshot.now
    if not (rules.forecast and rules.prewarm and rules.warm_pool and limits.warm_pool and limits.prewarm):
        return
    busy = np.bincount(snapshot.jobs.pool, weights=work.guess.members, minlength=len(snapshot.pools)) > 0
    next_plan_s = max(snapshot.tick_s, snapshot.next_plan_s)
    for pool, profile in enumerate(snapshot.pools):
        cold_s = profile.queue_s + profile.start_s + snapshot.tick_s
        times = snapshot.arrivals.times[pool]
        if len(times) <= FEWEST or (now - times[-1] < 2 * cold_s and busy[pool]):
            continue  # in the midst of a burst: there will be another plan when its last job ends
        burst = next_burst(times, cold_s, next_plan_s)
        if burst is None:
            continue
        opens = burst.head - cold_s - (next_plan_s - snapshot.tick_s)
        until = min(burst.tail + rules.keep * profile.start_s, burst.head + limits.idle_limit_s)
        work.wake(opens)
        # idle ones are kept from a cold start earlier: a start that was quicker than expected is no reason to repeat it
        if opens - cold_s <= now < until and burst.tail <= until:
            agents = agents_for(burst, snapshot.arrivals, pool, profile, work.guess.speeds[pool], cold_s)
            work.expected[pool] = (agents, until)
            # those on their way count whenever they come: one that is late must not be asked for twice
            there = sum(entry[1] == Kind.COMING or entry[0] <= burst.head for entry in timeline.pools[pool])
            if agents > there and opens <= now <= burst.tail and not work.late:
                _ask(work, pool, burst, agents, min(agents - there, timeline.room))


def _ask(work: Pass, pool: int, burst: Burst, agents: int, count: int) -> None:
    profile, now = work.snapshot.pools[pool], work.snapshot.now
    text = (
        "jobs for {} are expected in {:.0f} to {:.0f} s: the last {} bursts came every {:.0f} s; being warm ({}) "
        "saves what a cold start of {:.0f} s would cost them in deadlines or GPUs"
    )
    cold_s = profile.queue_s + profile.start_s
    soon, late = max(burst.head - now, 0.0), burst.tail - now
    why = Why(text, profile.name, soon, late, len(burst.begins), burst.period_s, Counted(agents, "GPU"), cold_s)
    work.timeline.room -= count
    work.actions.extend(Request(pool, why) for _ in range(count))


def next_burst(times: Floats, cold_s: float, next_plan_s: float = 0.0) -> Burst | None:
    """The burst that past ones foretell; None where they are too few, not regular, or not regular enough to pay.

    A burst begins after a quiet time of more than two cold starts and half the longest quiet time of late. It pays to
    be ready where an agent that is warm at the earliest begin waits for no longer, on average, than the cold start
    that it saves would take: a GPU-second idle for a second of a job's time.

    Args:
        times: the pool's submissions, ascending.
        cold_s: seconds from a request to a warm agent.
        next_plan_s: seconds between two plans, half of which it may be asked for too early.
    """
    late = times[-LATEST:]
    gaps = np.diff(late)
    starts = np.flatnonzero(gaps > max(2.0 * cold_s, 0.5 * float(gaps.max()))) + 1
    if len(times) < LATEST:
        starts = np.append(0, starts)  # else the first of them may lie within a burst
    begins = late[starts[-PERIODS - 1 :]]
    if len(begins) <= FEWEST:
        return None
    periods = np.diff(begins)
    mean, head, tail = float(periods.mean()), float(periods.min()), float(periods.max())
    if float(periods.std()) > SPREAD * mean or mean - head + next_plan_s / 2 > cold_s:
        return None
    last = float(begins[-1])
    return Burst(last + head, last + tail, mean, mean - head + next_plan_s / 2, tuple(begins.tolist()))


def agents_for(
    burst: Burst, arrivals: Arrivals, pool: int, profile: PoolProfile, speeds: tuple[float, ...], cold_s: float
) -> int:
    """GPUs that warming ahead pays for: of the past bursts' sizes the median (the lower one).

    A burst's size is the sum over the jobs that came within a cold start of its begin (later ones can be served by
    what the first ones show) of the fewest GPUs that meet the job's deadline warm, where a cold start would miss it,
    or would take more GPU-seconds than a warm agent is expected to wait.
    """
    columns = (arrivals.times, arrivals.work, arrivals.slack)
    times, works, slacks = (column[pool] if column else np.zeros(0) for column in columns)
    if not len(works) == len(slacks) == len(times):
        return 0  # nothing is known but the times
    sizes = []
    for begin in burst.begins:
        first, end = np.searchsorted(times, (begin, begin + cold_s), side="left")
        jobs = zip(works[first:end].tolist(), slacks[first:end].tolist(), strict=True)
        sizes.append(sum(_saving(w, s - profile.warm_s, speeds, cold_s, burst.idle_s) for w, s in jobs))
    return sorted(sizes)[(len(sizes) - 1) // 2]


def _saving(load_s: float, left_s: float, speeds: tuple[float, ...], cold_s: float, idle_s: float) -> int:
    """GPUs that are worth being warm for a job of ``load_s`` one-GPU seconds due in ``left_s``; 0 where none are."""
    warm, cold = (_fewest(load_s, left, speeds) for left in (left_s, left_s - cold_s))
    if not warm or warm == cold:
        return 0
    saved = load_s * (cold / speeds[cold] - warm / speeds[warm]) if cold else float("inf")
    return warm if saved > warm * idle_s else 0


def _fewest(load_s: float, left_s: float, speeds: tuple[float, ...]) -> int:
    """Fewest GPUs that do ``load_s`` within ``left_s``; 0 where none do, or nothing is known of it (nan)."""
    if left_s <= 0:
        return 0
    return next((n for n in range(1, len(speeds)) if load_s <= left_s * speeds[n]), 0)
