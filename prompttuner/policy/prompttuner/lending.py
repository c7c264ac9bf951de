"""Jobs that are in time only if they begin now, on what others lend or give up, and grow later."""

from __future__ import annotations

from prompttuner.policy.contract.plan import Reason, SwitchModel, Why
from prompttuner.policy.prompttuner.planning_pass import Pass
from prompttuner.policy.prompttuner.timeline import Kind
from prompttuner.words import Counted

__all__ = ["begin"]

NEEDED = "job {} needs its GPU (deadline in {:.0f} s)"


def begin(work: Pass, row: int) -> bool:
    """Begin an accepted job that has no place in full with its share of now; False where it has none or gets none.

    Idle agents start it at once; those of others are freed, for it to begin at the next look.
    """
    snapshot, timeline, jobs = work.snapshot, work.timeline, work.snapshot.jobs
    share = work.accepted.shares.get(row)
    if share is None:
        return False
    pool, name, low = int(jobs.pool[row]), jobs.id[row], max(int(jobs.min_gpus[row]), 1)
    want, soon = max(int(share + 0.5), low), snapshot.now + snapshot.tick_s
    left = float(jobs.deadline[row]) - snapshot.now
    own = timeline.pick(pool, want, soon, soon)
    lent = _lenders(work, row, want - len(own)) if row in work.accepted.pressing and work.rules.resize else []
    short = want - len(own) - len(lent)
    moved = [e for _, e in timeline.elsewhere(pool, short) if e[0] <= soon] if short and work.rules.switch else []
    if len(own) + len(moved) + len(lent) < low:
        return False
    timeline.take(own + moved)
    for lender, agent in lent:
        work.leaving.setdefault(lender, set()).add(agent)
        work.causes[lender] = _cause(work, lender, name, left)
        timeline.drop(int(snapshot.agents.pool[agent]), float(work.ends[lender]), agent)
    for entry in own + moved:
        if entry[1] == Kind.SPARE:
            work.take_spare(entry[3], Why(NEEDED, name, left))
        elif entry[4] != pool and entry[1] == Kind.IDLE:
            text = "job {} needs {} with {} now, and this one is idle (deadline in {:.0f} s)"
            why = Why(text, name, Counted(want, "GPU"), snapshot.pools[pool].name, left)
            work.actions.append(SwitchModel(snapshot.agents.id[entry[3]], pool, why, name))
    idle = [entry[3] for entry in own if entry[1] == Kind.IDLE]
    if len(idle) >= low:
        lookup_s = snapshot.pools[pool].lookup_s if work.guess.lookup[row] else 0.0
        text = "begins on {}, now idle, to end before its deadline in {:.0f} s, and is to have more later"
        work.assign(row, idle, Why(text, Counted(len(idle), "GPU"), left), lookup_s)
    else:
        text = "begins soon on {} ({} of jobs that are due later or were put last); its deadline is in {:.0f} s"
        work.notes[name] = Why(text, Counted(len(own) + len(moved) + len(lent), "GPU"), len(lent), left)
    timeline.give(pool, float(jobs.deadline[row]), len(own) + len(moved) + len(lent))
    return True


def _cause(work: Pass, lender: int, name: str, left: float) -> Reason:
    """Why a job lends, or gives up, its GPUs."""
    size = work.accepted.dropped.get(lender)
    if size is not None:
        text = (
            "gives way to job {}, due in {:.0f} s: not all deadlines can be met, and {:.0f} GPU-seconds are left of it"
        )
        return Why(text, name, left, size)
    slack = float(work.snapshot.jobs.deadline[lender]) - float(work.ends[lender])
    return Why("lends to job {}, due in {:.0f} s: it has {:.0f} s of slack itself", name, left, slack)


def _lenders(work: Pass, row: int, count: int) -> list[tuple[int, int]]:
    """(job, agent) of running jobs that can do without an agent.

    Of its own pool first, then those put last, then the latest deadline first. Whoever lends is due later, so that
    nothing is given straight back.
    """
    jobs, lend, dropped = work.snapshot.jobs, work.accepted.lend, work.accepted.dropped
    pool, due, due_at = int(jobs.pool[row]), float(jobs.deadline[row]), jobs.deadline
    if work.lenders is None:
        work.lenders = sorted(lend, key=lambda o: (o not in dropped, -float(due_at[o]), o))
    willing = [
        other
        for other in work.lenders
        if lend[other] > 0 and other not in work.touched and (other in dropped or float(due_at[other]) > due)
    ]
    able = [other for other in willing if int(jobs.pool[other]) == pool]
    if work.rules.switch:
        able += [other for other in willing if int(jobs.pool[other]) != pool]
    found: list[tuple[int, int]] = []
    for other in able:
        gone = work.leaving.get(other, set())
        free = [agent for agent in work.members(other) if agent not in gone]
        taken = min(lend[other], count - len(found), len(free))
        lend[other] -= taken
        found += [(other, agent) for agent in free[len(free) - taken :]]
        if len(found) == count:
            break
    return found
