"""Running jobs whose number of members lies outside of their limits: scaled by the user, or after a loss."""

from __future__ import annotations

import numpy as np

from prompttuner.policy.contract.plan import Request, Why
from prompttuner.policy.contract.snapshot import Ints, JobPhase, Snapshot
from prompttuner.policy.prompttuner.planning_pass import Pass
from prompttuner.policy.prompttuner.timeline import Kind
from prompttuner.words import Counted

__all__ = ["outside_limits", "respect_limits"]


def outside_limits(snapshot: Snapshot, members: Ints) -> list[int]:
    """Rows of settled running jobs with fewer members than ``min_gpus`` or more than ``max_gpus``."""
    jobs = snapshot.jobs
    outside = (members < jobs.min_gpus) | (members > jobs.max_gpus)
    return [int(row) for row in np.flatnonzero((jobs.phase == JobPhase.RUNNING) & (members > 0) & outside)]


def respect_limits(work: Pass) -> None:
    """Shrink at once; grow as soon as all that is missing is idle, asking for it where it is not on its way."""
    snapshot, timeline = work.snapshot, work.timeline
    jobs, now = snapshot.jobs, snapshot.now
    for row in outside_limits(snapshot, work.guess.members):
        have, low, high = work.members(row), int(jobs.min_gpus[row]), int(jobs.max_gpus[row])
        pool = int(jobs.pool[row])
        if len(have) > high:
            work.assign(row, have[:high], Why("may have {} at most and has {}", Counted(high, "GPU"), len(have)))
            continue
        missing, least = low - len(have), Counted(low, "GPU")
        own = set(have)
        picked = [e for e in timeline.pick(pool, missing + len(have), now) if e[3] not in own][:missing]
        timeline.take(picked)
        idle = [entry[3] for entry in picked if entry[1] == Kind.IDLE]
        if len(idle) == missing:
            work.assign(row, have + idle, Why("needs {} at least and has {}", least, len(have)))
            continue
        for entry in picked:
            if entry[1] == Kind.SPARE:
                work.take_spare(entry[3], Why("job {} needs {} at least", jobs.id[row], least))
        asked = min(missing - len(picked), timeline.room)
        timeline.room -= asked
        why = Why("job {} needs {} at least and has {}", jobs.id[row], least, len(have))
        work.actions.extend(Request(pool, why, jobs.id[row]) for _ in range(asked))
        text = "needs {} at least and has {}: {} idle, {} asked for now"
        work.notes[jobs.id[row]] = Why(text, least, len(have), len(idle), asked)
