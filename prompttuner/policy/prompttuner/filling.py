"""GPUs that no deadline needs: best-effort jobs first, then more members for running jobs."""

from __future__ import annotations

import numpy as np

from prompttuner.policy.contract.plan import Request, SwitchModel, Why
from prompttuner.policy.contract.snapshot import JobPhase
from prompttuner.policy.estimate import queue_order
from prompttuner.policy.prompttuner.planning_pass import Pass
from prompttuner.policy.prompttuner.timeline import Kind
from prompttuner.words import Counted

__all__ = ["boost", "fill"]

FILL_MOST = 256
"""Best-effort jobs looked at in one pass."""


def fill(work: Pass) -> None:
    """Waiting jobs without a deadline that counts run on what is idle; late ones first, then by priority and age."""
    rest = work.waiting[~work.timely[work.waiting]]
    rows = work.late + queue_order(work.snapshot, rest).tolist()
    for place, row in enumerate(rows[:FILL_MOST]):
        _fill_one(work, row, place)


def _fill_one(work: Pass, row: int, place: int) -> None:
    snapshot, timeline, now = work.snapshot, work.timeline, work.snapshot.now
    jobs, pool = snapshot.jobs, int(snapshot.jobs.pool[row])
    profile, name = snapshot.pools[pool], jobs.id[row]
    low = max(int(jobs.min_gpus[row]), 1)
    lookup = bool(work.guess.lookup[row])
    standing = "put last" if place < len(work.late) else "best effort"
    seconds = float(work.fixed[row]) + float(work.work[row]) / work.guess.speeds[pool][low]
    taken = [e for e in timeline.pick(pool, low, now + work.rules.wait_s) if e[1] != Kind.SPARE]
    idle = [entry for entry in taken if entry[1] == Kind.IDLE]
    if len(taken) == low:
        timeline.take(taken)
        timeline.give(pool, taken[-1][0] + seconds, low)
        if len(idle) == low:
            why = Why("{}: {} with {}, now idle", standing, Counted(low, "GPU"), profile.name)
            work.assign(row, [entry[3] for entry in idle], why, profile.lookup_s if lookup else 0.0)
        else:
            text = "{}: waits {:.0f} s for {} of its pool"
            work.notes[name] = Why(text, standing, taken[-1][0] - now, Counted(low, "GPU"))
        return
    short = low - len(taken)
    moved = [e for _, e in timeline.elsewhere(pool, short) if e[1] == Kind.IDLE] if work.rules.switch else []
    if len(moved) + timeline.room >= short:
        timeline.take(taken)
        timeline.take(moved)
        for entry in moved:
            why = Why("best-effort job {} waits for {}, and no deadline needs this GPU", name, profile.name)
            work.actions.append(SwitchModel(snapshot.agents.id[entry[3]], pool, why, name))
        for _ in range(short - len(moved)):
            timeline.room -= 1
            text = "best-effort job {} waits, and no GPU of its pool comes free within {:.0f} s"
            work.actions.append(Request(pool, Why(text, name, work.rules.wait_s), name))
        timeline.give(pool, timeline.cold_at[pool] + seconds, low)
        work.notes[name] = Why("{}: waits for {} to start", standing, Counted(short, "agent"))
        return
    text = "{}: {} before it, no GPU is spare; a higher priority or a deadline would change that"
    work.notes.setdefault(name, Why(text, standing, Counted(place, "job")))


def boost(work: Pass) -> None:
    """Idle agents that are kept anyway join the running job of their pool to which they bring most."""
    if not work.rules.resize:
        return
    snapshot, timeline = work.snapshot, work.timeline
    jobs, guess, rules = snapshot.jobs, work.guess, work.rules
    for pool, entries in enumerate(timeline.pools):
        count = 0
        while count < len(entries) and entries[count][1] == Kind.IDLE:
            count += 1
        if not count:
            continue
        settled = snapshot.now - jobs.phase_since >= 2 * snapshot.tick_s
        able = (jobs.phase == JobPhase.RUNNING) & (jobs.pool == pool) & (guess.members < guess.top) & settled
        able &= (guess.members > 0) & (work.ends - snapshot.now > rules.boost_s)
        rows = [r for r in np.flatnonzero(able).tolist() if r not in work.touched and r not in work.leaving]
        table = guess.speeds[pool]
        gains = [table[int(guess.members[r]) + 1] - table[int(guess.members[r])] for r in rows]
        # most gain first, then whoever has longest to go: there the pause weighs least
        order = sorted(range(len(rows)), key=lambda i: (-gains[i], -float(work.ends[rows[i]]), rows[i]))
        for i in order[:count]:
            if gains[i] < rules.boost_gain:
                break
            row = rows[i]
            entry = entries[0]
            timeline.take([entry])
            text = "an idle GPU of its pool brings {:.2f} of a GPU's speed; others get it back when they need it"
            work.assign(row, [*work.members(row), entry[3]], Why(text, gains[i]))
            timeline.give(pool, float(work.ends[row]), 1)
