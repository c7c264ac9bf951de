"""Running jobs that would miss their deadline get more members."""

from __future__ import annotations

from prompttuner.policy.contract.plan import Request, Why
from prompttuner.policy.contract.snapshot import JobPhase
from prompttuner.policy.prompttuner.planning_pass import Pass
from prompttuner.policy.prompttuner.timeline import Kind
from prompttuner.words import Counted

__all__ = ["grow"]


def grow(work: Pass, row: int) -> None:
    """A running job that would miss its deadline gets more members, as soon as there are any."""
    snapshot, timeline, now = work.snapshot, work.timeline, work.snapshot.now
    jobs, pool = snapshot.jobs, int(snapshot.jobs.pool[row])
    have, top = int(work.guess.members[row]), int(work.guess.top[row])
    if jobs.phase[row] not in (JobPhase.RUNNING, JobPhase.LOOKUP) or have >= top:
        return
    profile, table = snapshot.pools[pool], work.guess.speeds[pool]
    entries = timeline.pools[pool]
    deadline, load = float(jobs.deadline[row]), float(work.work[row])
    pause = 0.0 if jobs.phase[row] == JobPhase.LOOKUP else profile.resize_s + profile.warm_s
    for n in range(have + 1, top + 1):
        if len(entries) < n - have:
            break
        start = entries[n - have - 1][0]
        done = (start - now) * table[have] if jobs.phase[row] == JobPhase.RUNNING else 0.0
        end = max(start, now + float(work.fixed[row])) + pause + max(load - done, 0.0) / table[n]
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
    timeline.take(awaited)
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
    timeline.take(taken)
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
