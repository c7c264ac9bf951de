"""Jobs with deadlines, earliest first, each on the fewest and cheapest agents of the timeline that meet it."""

from __future__ import annotations

import numpy as np

from prompttuner.policy.contract.plan import Demote, Reason, Request, Restore, SwitchModel, Why
from prompttuner.policy.contract.snapshot import JobPhase
from prompttuner.policy.estimate import queue_order
from prompttuner.policy.prompttuner.choosing import Choice, choose
from prompttuner.policy.prompttuner.growing import grow
from prompttuner.policy.prompttuner.lending import begin
from prompttuner.policy.prompttuner.planning_pass import Pass
from prompttuner.policy.prompttuner.timeline import Kind
from prompttuner.words import Counted

__all__ = ["place_all"]

LOOK_AHEAD = 2
"""Jobs placed in one pass, at most: this many times the GPUs (and 64 at least); later deadlines wait their turn."""
WAITING = 64
"""Jobs that are planned to wait, at most, once nothing more can start now; later deadlines wait their turn."""


def place_all(work: Pass) -> None:
    """Place what has a deadline; tell the user of those that lost or regained theirs."""
    snapshot = work.snapshot
    _restore(work)
    rows = np.concatenate([work.waiting[work.timely[work.waiting]], work.needy])
    hopeless = _hopeless(work, rows)
    for row in rows[hopeless].tolist():
        _demote(work, row)
    _demote_running(work)
    rows = rows[~hopeless]
    most = max(WAITING, int(LOOK_AHEAD * min(snapshot.limits.gpus, 1e6)))
    if len(rows) > most:
        chosen = np.argpartition(snapshot.jobs.deadline[rows], most)
        rows, work.behind = rows[chosen[:most]], rows[chosen[most:]]
    queue = _without_dropped(work, queue_order(snapshot, rows).tolist())
    waiting = 0
    for place, row in enumerate(queue):
        if waiting >= WAITING and not work.timeline.startable():
            rest = np.array([r for r in queue[place:] if r not in work.accepted.pressing], dtype=np.int64)
            work.behind = np.concatenate([rest, work.behind])
            work.ahead += place
            for later in queue[place:]:
                if later in work.accepted.pressing:
                    _serve(work, later)
            return
        waiting += not _serve(work, row)
    work.ahead += len(queue)


def _serve(work: Pass, row: int) -> bool:
    """Place one job; True where its membership changes now."""
    jobs, before = work.snapshot.jobs, len(work.touched)
    if work.guess.members[row] > 0:
        if row not in work.touched:
            grow(work, row)
    elif not (_place(work, row) or begin(work, row)):
        work.late.append(row)
        text = (
            "its deadline in {:.0f} s does not fit behind more urgent jobs; it runs when GPUs are spare; "
            "a later deadline, or others that end early, would change that"
        )
        work.notes[jobs.id[row]] = Why(text, float(jobs.deadline[row]) - work.snapshot.now)
    return len(work.touched) > before


def _without_dropped(work: Pass, queue: list[int]) -> list[int]:
    """The queue without jobs whose deadline was given up for others; these go first where GPUs are spare."""
    jobs, dropped = work.snapshot.jobs, work.accepted.dropped
    for row in queue:
        if row in dropped and work.guess.members[row] == 0:
            work.late.append(row)
            text = (
                "more is due within {:.0f} s than the GPUs can do; its {:.0f} GPU-seconds would make more jobs late; "
                "a later deadline, or others that end early, would change that"
            )
            left = float(jobs.deadline[row]) - work.snapshot.now
            work.notes[jobs.id[row]] = Why(text, left, dropped[row])
    return [row for row in queue if row not in dropped]


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
    took = float(work.fixed[row]) + float(work.guess.work_mid[row]) / speed
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
    choice = choose(work, row, bool(work.guess.lookup[row]))
    if choice is None and work.guess.lookup[row]:
        choice = choose(work, row, False)
    if choice is None:
        return False
    _commit(work, row, choice)
    return True


def _commit(work: Pass, row: int, choice: Choice) -> None:
    """Take the chosen agents: assign, ask, switch, or wait."""
    snapshot, timeline, now = work.snapshot, work.timeline, work.snapshot.now
    jobs, pool = snapshot.jobs, int(snapshot.jobs.pool[row])
    profile = snapshot.pools[pool]
    left = float(jobs.deadline[row]) - now
    taken = choice.own
    timeline.take(taken)
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
        _obtain(work, row, choice)
    timeline.give(pool, choice.start + choice.seconds, choice.members)


def _obtain(work: Pass, row: int, choice: Choice) -> None:
    """Free, move and ask for what the job waits for, and note why it waits."""
    snapshot, timeline, now = work.snapshot, work.timeline, work.snapshot.now
    pool, name = int(snapshot.jobs.pool[row]), snapshot.jobs.id[row]
    profile = snapshot.pools[pool]
    left, members = float(snapshot.jobs.deadline[row]) - now, Counted(choice.members, "GPU")
    for entry in choice.own:
        if entry[1] == Kind.SPARE:
            work.take_spare(entry[3], Why("job {} needs its GPU (deadline in {:.0f} s)", name, left))
    timeline.take(choice.moved)
    for entry in choice.moved:
        if entry[1] == Kind.IDLE:
            text = "job {} needs {} more with {}, and this one is idle (deadline in {:.0f} s)"
            why = Why(text, name, len(choice.moved), profile.name, left)
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
    work.notes[name] = Why(text, start, members, len(choice.own), len(choice.moved), choice.cold, left)
    # a job that waits for running ones is looked at again before its patience ends
    if any(entry[1] >= Kind.BUSY for entry in choice.own):
        work.wake(choice.start)
