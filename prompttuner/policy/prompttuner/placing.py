"""Jobs with deadlines, earliest first, each on the fewest and cheapest agents of the timeline that meet it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prompttuner.policy.contract.plan import Demote, Reason, Request, Restore, SwitchModel, Why
from prompttuner.policy.contract.snapshot import JobPhase
from prompttuner.policy.estimate import queue_order
from prompttuner.policy.prompttuner.planning_pass import Pass
from prompttuner.policy.prompttuner.timeline import Entry, Kind
from prompttuner.words import Counted

__all__ = ["place_all"]

LOOK_AHEAD = 2
"""Jobs placed in one pass, at most: this many times the GPUs (and 64 at least); later deadlines wait their turn."""


@dataclass(slots=True)
class _Choice:
    """One way to run a job: ``members`` agents, ``own`` of its pool, ``moved`` of other LLMs, ``cold`` of Slurm."""

    cost: float
    members: int
    own: list[Entry]
    moved: int
    cold: int
    start: float
    seconds: float
    lookup: bool


def place_all(work: Pass) -> None:
    """Place what has a deadline; tell the user of those that lost or regained theirs."""
    snapshot = work.snapshot
    jobs, now = snapshot.jobs, snapshot.now
    timely = np.array(work.timely, dtype=np.bool_)
    _restore(work)
    rows = np.concatenate([work.waiting[timely[work.waiting]], work.needy])
    hopeless = _hopeless(work, rows)
    for row in rows[hopeless].tolist():
        _demote(work, row)
    _demote_running(work)
    queue = queue_order(snapshot, rows[~hopeless]).tolist()
    if work.rules.rescue:
        queue = without_dropped(work, queue)
    most = max(64, int(LOOK_AHEAD * min(snapshot.limits.gpus, 1e6)))
    members = work.guess.members
    for row in queue[:most]:
        if members[row] > 0:
            if row not in work.touched:
                _grow(work, row)
        elif not (_place(work, row) or (work.rules.rescue and _begin(work, row))):
            work.late.append(row)
            left = float(jobs.deadline[row]) - now
            text = (
                "its deadline in {:.0f} s does not fit behind more urgent jobs; it runs when GPUs are spare; "
                "a later deadline, or others that end early, would change that"
            )
            work.notes[jobs.id[row]] = Why(text, left)
    for place, row in enumerate(queue[most:]):
        text = "waits behind {}, due earlier"
        work.notes[jobs.id[row]] = Why(text, Counted(most + place, "job"))


def without_dropped(work: Pass, queue: list[int]) -> list[int]:
    jobs = work.snapshot.jobs
    kept = []
    for row in queue:
        if row not in work.accepted.dropped:
            kept.append(row)
        elif work.guess.members[row] == 0:
            work.late.append(row)
            left = float(jobs.deadline[row]) - work.snapshot.now
            text = (
                "more is due within {:.0f} s than the GPUs can do; its {:.0f} GPU-seconds would make more jobs late; "
                "a later deadline, or others that end early, would change that"
            )
            work.notes[jobs.id[row]] = Why(text, left, work.accepted.dropped[row])
    return kept


def _begin(work: Pass, row: int) -> bool:
    """Start an accepted job on what it can have now; it grows later."""
    snapshot, timeline, now = work.snapshot, work.timeline, work.snapshot.now
    jobs, pool = snapshot.jobs, int(snapshot.jobs.pool[row])
    share = work.accepted.shares.get(row)
    low = max(int(jobs.min_gpus[row]), 1)
    if share is None:
        return False
    want = max(int(share + 0.5), low)
    left = float(jobs.deadline[row]) - now
    soon = now + snapshot.tick_s
    own = timeline.pick(pool, want, soon, soon)
    idle = [entry[3] for entry in own if entry[1] == Kind.IDLE]
    others = []
    lent = []
    if len(own) < want and row in work.accepted.pressing:
        lent = _lenders(work, row, want - len(own))
    if len(own) + len(lent) < want and work.rules.switch:
        others = [e for e in timeline.elsewhere(pool, want) if e[2][0] <= soon][: want - len(own) - len(lent)]
    if len(own) + len(others) + len(lent) < low:
        return False
    for lender, agent in lent:
        work.leaving.setdefault(lender, set()).add(agent)
        work.causes[lender] = Why("job {} needs its GPU (deadline in {:.0f} s)", jobs.id[row], left)
        timeline.drop(int(jobs.pool[lender]), {agent})
    timeline.take(pool, own)
    for entry in own:
        if entry[1] == Kind.SPARE:
            work.take_spare(entry[3], Why("job {} needs its GPU (deadline in {:.0f} s)", jobs.id[row], left))
    for _, other, entry in others:
        timeline.take(other, [entry])
        if entry[1] == Kind.IDLE:
            why = Why("job {} needs {}", jobs.id[row], Counted(want, "GPU"))
            work.actions.append(SwitchModel(snapshot.agents.id[entry[3]], pool, why, jobs.id[row]))
        elif entry[1] == Kind.SPARE:
            work.take_spare(entry[3], Why("job {} needs its GPU (deadline in {:.0f} s)", jobs.id[row], left))
    if len(idle) >= low:
        lookup = work.snapshot.pools[pool].lookup_s if work.guess.lookup[row] else 0.0
        work.assign(row, idle, Why("starts on {}", Counted(len(idle), "GPU")), lookup)
    else:
        work.notes[jobs.id[row]] = Why("takes over {}", Counted(len(own) + len(others) + len(lent), "GPU"))
    timeline.give(pool, float(jobs.deadline[row]), len(own) + len(others) + len(lent))
    return True


def _lenders(work: Pass, row: int, count: int) -> list[tuple[int, int]]:
    """(job, agent) of running jobs due later that can lend; its own pool first, the latest deadline first."""
    jobs = work.snapshot.jobs
    pool = int(jobs.pool[row])
    due = float(jobs.deadline[row])
    lend = work.accepted.lend
    rows = [r for r in lend if r not in work.touched and (r in work.accepted.dropped or float(jobs.deadline[r]) > due) and (work.rules.switch or jobs.pool[r] == pool)]
    rows.sort(key=lambda r: (jobs.pool[r] != pool, r not in work.accepted.dropped, -float(jobs.deadline[r]), r))
    found = []
    for r in rows:
        gone = work.leaving.get(r, set())
        free = [a for a in work.members(r) if a not in gone and a not in timeline_spare(work)]
        take = min(lend[r], count - len(found), len(free))
        lend[r] -= take
        found += [(r, a) for a in free[len(free) - take :]]
        if len(found) == count:
            break
    return found


def timeline_spare(work: Pass) -> dict[int, int]:
    return work.timeline.spare_rows


def _hopeless(work: Pass, rows: np.ndarray) -> np.ndarray:
    """Jobs that miss even on the most warm GPUs, at the median, with or without a lookup."""
    jobs, guess = work.snapshot.jobs, work.guess
    table = np.array(guess.speeds)
    speed = table[jobs.pool[rows], np.minimum(guess.top[rows], table.shape[1] - 1)]
    with_bank = guess.fixed[rows] + guess.work_mid[rows] / speed
    lookup_s = np.array([p.lookup_s for p in work.snapshot.pools])[jobs.pool[rows]]
    saved = np.where(guess.lookup[rows], lookup_s, 0.0)
    plain = guess.fixed[rows] - saved + jobs.step_s[rows] * jobs.iters_mid[rows] / speed
    ahead = np.isin(jobs.phase[rows], (JobPhase.LOOKUP,))
    best = np.where(ahead, with_bank, np.minimum(with_bank, plain))
    return np.asarray(work.snapshot.now + best > jobs.deadline[rows])


def _demote(work: Pass, row: int) -> None:
    jobs = work.snapshot.jobs
    left = float(jobs.deadline[row]) - work.snapshot.now
    most = int(work.guess.top[row])
    speed = work.guess.speeds[int(jobs.pool[row])][most]
    took = work.fixed[row] + float(work.guess.work_mid[row]) / speed
    if left <= 0:
        text = "its deadline passed {:.0f} s ago; it goes on as best effort; a deadline {:.0f} s later could be met"
        why = Why(text, -left, took - left)
    else:
        text = (
            "its deadline in {:.0f} s cannot be met: even {} would take {:.0f} s; it goes on as best effort; "
            "a deadline {:.0f} s later could be met"
        )
        why = Why(text, left, Counted(most, "warm GPU"), took, max(took - left, 0.0))
    work.actions.append(Demote(jobs.id[row], why))
    work.timely[row] = False


def _demote_running(work: Pass) -> None:
    """Running jobs past their deadline."""
    jobs, now = work.snapshot.jobs, work.snapshot.now
    counts = ~jobs.best_effort & np.isfinite(jobs.deadline)
    for row in np.flatnonzero((work.guess.members > 0) & counts & (jobs.deadline <= now)).tolist():
        if row not in work.stopped:
            text = "its deadline passed {:.0f} s ago; it goes on as best effort"
            work.actions.append(Demote(jobs.id[row], Why(text, now - float(jobs.deadline[row]))))
            work.timely[row] = False


def _restore(work: Pass) -> None:
    """Demoted jobs that will make their deadline after all, as they run now."""
    jobs = work.snapshot.jobs
    back = jobs.best_effort & np.isfinite(jobs.deadline) & (work.ends + work.margin_s <= jobs.deadline)
    for row in np.flatnonzero(back & (jobs.phase == JobPhase.RUNNING)).tolist():
        left = float(jobs.deadline[row]) - float(work.ends[row])
        work.actions.append(Restore(jobs.id[row], Why("predicted to end {:.0f} s before its deadline", left)))
        work.timely[row] = True


def _place(work: Pass, row: int) -> bool:
    """Give the job its place on the timeline; False where no place meets its deadline."""
    choice = _choose(work, row, bool(work.guess.lookup[row]))
    if choice is None and work.guess.lookup[row]:
        choice = _choose(work, row, False)
    if choice is None:
        return False
    _commit(work, row, choice)
    return True


def _choose(work: Pass, row: int, lookup: bool) -> _Choice | None:
    """The cheapest way that meets the deadline. Cost: GPU-seconds of the run, of starts and of pauses it causes."""
    snapshot, timeline, rules = work.snapshot, work.timeline, work.rules
    pool, now = int(snapshot.jobs.pool[row]), snapshot.now
    profile, table = snapshot.pools[pool], work.guess.speeds[pool]
    load = work.work[row] if lookup else work.plain[row]
    fixed = work.fixed[row] - (0.0 if lookup or not work.guess.lookup[row] else profile.lookup_s)
    last = float(snapshot.jobs.deadline[row]) - work.margin_s - fixed
    top = int(work.guess.top[row])
    moved = timeline.elsewhere(pool, top) if rules.switch else []
    cold_at, room = timeline.cold_at[pool], timeline.room
    impatience = 1.0 - rules.patience if rules.delay else 1.0
    best: _Choice | None = None
    for n in range(max(int(snapshot.jobs.min_gpus[row]), 1), top + 1):
        seconds = fixed + load / table[n]
        latest = last - load / table[n]
        if latest < now:
            continue
        patient = latest - impatience * (latest - now)
        own = timeline.pick(pool, n, patient, latest)
        start = max(own[-1][0], now) if own else now
        cost = n * seconds + 2 * profile.resize_s * sum(entry[1] == Kind.SPARE for entry in own)
        short = n - len(own)
        used = 0
        while used < short and used < len(moved) and moved[used][0] <= latest:
            cost += profile.switch_s
            start = max(start, moved[used][0])
            used += 1
        cold = 0
        if used < short and cold_at <= latest and room >= short - used:
            cold = short - used
            cost += cold * (profile.start_s + 1e-3)
            start = max(start, cold_at)
        if len(own) + used + cold < n:
            # nothing but waiting longer for the pool's own agents may be left
            own, used, cold = timeline.pick(pool, n, latest, latest), 0, 0
            if len(own) < n:
                continue
            start, cost = max(own[-1][0], now), n * seconds
        if best is None or cost < best.cost:
            best = _Choice(cost, n, own, used, cold, start, seconds, lookup)
        elif n > best.members + 1:
            break
    return best


def _commit(work: Pass, row: int, choice: _Choice) -> None:
    """Take the chosen agents: assign, ask, switch, or wait."""
    snapshot, timeline, now = work.snapshot, work.timeline, work.snapshot.now
    jobs, pool = snapshot.jobs, int(snapshot.jobs.pool[row])
    profile = snapshot.pools[pool]
    left = float(jobs.deadline[row]) - now
    sources = timeline.elsewhere(pool, int(work.guess.top[row]))[: choice.moved] if choice.moved else []
    taken = choice.own
    timeline.take(pool, taken)
    idle = [entry[3] for entry in taken if entry[1] == Kind.IDLE]
    members = Counted(choice.members, "GPU")
    text = "{} with {}, the cheapest that end before its deadline ({:.0f} s predicted, {:.0f} s left)"
    why: Reason = Why(text, members, profile.name, choice.start - now + choice.seconds, left)
    lookup_s = profile.lookup_s if choice.lookup else 0.0
    if len(idle) == choice.members:
        work.assign(row, idle, why, lookup_s)
    else:
        early = work.rules.resize and len(idle) >= max(int(jobs.min_gpus[row]), 1)
        if early and choice.start - now > profile.warm_s + profile.resize_s + 2 * snapshot.tick_s:
            text = "starts on {}, now idle; it is to have {} in {:.0f} s (deadline in {:.0f} s)"
            why = Why(text, Counted(len(idle), "GPU"), choice.members, choice.start - now, left)
            work.assign(row, idle, why, lookup_s)
        _obtain(work, row, choice, sources)
    timeline.give(pool, choice.start + choice.seconds, choice.members)


def _obtain(work: Pass, row: int, choice: _Choice, sources: list[tuple[float, int, Entry]]) -> None:
    """Free, move and ask for what the job waits for, and note why it waits."""
    snapshot, timeline, now = work.snapshot, work.timeline, work.snapshot.now
    pool, name = int(snapshot.jobs.pool[row]), snapshot.jobs.id[row]
    profile = snapshot.pools[pool]
    left, members = float(snapshot.jobs.deadline[row]) - now, Counted(choice.members, "GPU")
    for entry in choice.own:
        if entry[1] == Kind.SPARE:
            work.take_spare(entry[3], Why("job {} needs its GPU (deadline in {:.0f} s)", name, left))
    for _, other, entry in sources:
        timeline.take(other, [entry])
        if entry[1] == Kind.IDLE:
            text = "job {} needs {} more with {}, and this one is idle (deadline in {:.0f} s)"
            why = Why(text, name, choice.moved, profile.name, left)
            work.actions.append(SwitchModel(snapshot.agents.id[entry[3]], pool, why, name))
        elif entry[1] == Kind.SPARE:
            work.take_spare(entry[3], Why("job {} needs its GPU (deadline in {:.0f} s)", name, left))
    for _ in range(choice.cold):
        timeline.room -= 1
        text = "job {} needs {}; no warm one comes free in time (deadline in {:.0f} s, cold start {:.0f} s)"
        why = Why(text, name, members, left, timeline.cold_at[pool] - now)
        work.actions.append(Request(pool, why, name))
    text = (
        "waits {:.0f} s for {} ({} of its pool, {} from other LLMs, {} newly asked for), which meets its "
        "deadline in {:.0f} s; a nearer one would change that"
    )
    start = choice.start - now
    work.notes[name] = Why(text, start, members, len(choice.own), choice.moved, choice.cold, left)
    # a job that waits for running ones is looked at again before its patience ends
    if any(entry[1] >= Kind.BUSY for entry in choice.own):
        work.wake(choice.start)


def _grow(work: Pass, row: int) -> None:
    """A running job that would miss its deadline gets more members, as soon as there are any."""
    snapshot, timeline, now = work.snapshot, work.timeline, work.snapshot.now
    jobs, pool = snapshot.jobs, int(snapshot.jobs.pool[row])
    have, top = int(work.guess.members[row]), int(work.guess.top[row])
    if jobs.phase[row] not in (JobPhase.RUNNING, JobPhase.LOOKUP) or have >= top:
        return
    profile, table = snapshot.pools[pool], work.guess.speeds[pool]
    entries = timeline.pools[pool]
    deadline, load = float(jobs.deadline[row]), work.work[row]
    pause = 0.0 if jobs.phase[row] == JobPhase.LOOKUP else profile.resize_s + profile.warm_s
    for n in range(have + 1, top + 1):
        if len(entries) < n - have:
            break
        start = entries[n - have - 1][0]
        done = (start - now) * table[have] if jobs.phase[row] == JobPhase.RUNNING else 0.0
        end = max(start, now + work.fixed[row]) + pause + max(load - done, 0.0) / table[n]
        if end + work.margin_s <= deadline:
            _commit_growth(work, row, n, end)
            return
    _ask_to_grow(work, row, deadline)


def _ask_to_grow(work: Pass, row: int, deadline: float) -> None:
    """No agent comes in time: one from Slurm at least shortens the delay, where it comes well before the end."""
    timeline, have = work.timeline, int(work.guess.members[row])
    jobs, pool = work.snapshot.jobs, int(work.snapshot.jobs.pool[row])
    short = int(work.needs[row]) - have
    if short <= 0 or timeline.cold_at[pool] - timeline.now > 0.5 * (work.ends[row] - timeline.now):
        return
    awaited = [entry for entry in timeline.pools[pool] if entry[1] == Kind.COMING][:short]
    timeline.take(pool, awaited)
    short -= len(awaited)
    if timeline.room >= short:
        text = "job {} would end {:.0f} s after its deadline with {}"
        why = Why(text, jobs.id[row], float(work.ends[row]) - deadline, Counted(have, "GPU"))
        timeline.room -= short
        work.actions.extend(Request(pool, why, jobs.id[row]) for _ in range(short))


def _commit_growth(work: Pass, row: int, members: int, end: float) -> None:
    snapshot, timeline, now = work.snapshot, work.timeline, work.snapshot.now
    jobs, pool = snapshot.jobs, int(snapshot.jobs.pool[row])
    have = int(work.guess.members[row])
    taken = timeline.pools[pool][: members - have]
    timeline.take(pool, taken)
    left = float(jobs.deadline[row]) - now
    late = float(work.ends[row]) - float(jobs.deadline[row])
    idle = [entry[3] for entry in taken if entry[1] == Kind.IDLE]
    for entry in taken:
        if entry[1] == Kind.SPARE:
            work.take_spare(entry[3], Why("job {} needs its GPU (deadline in {:.0f} s)", jobs.id[row], left))
    if idle:
        text = "with {} it would end {:.0f} s late; with {} it ends in {:.0f} s, its deadline is in {:.0f} s"
        why = Why(text, Counted(have, "GPU"), late, have + len(idle), end - now, left)
        work.assign(row, work.members(row) + idle, why)
    timeline.give(pool, end, members - have)
