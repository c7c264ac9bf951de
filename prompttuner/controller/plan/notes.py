"""When an explanation is another one: numbers that merely count down do not write rows in every tick."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prompttuner.db.tables.models import Job
from prompttuner.policy.contract.plan import Plan

__all__ = ["NOTE_LIMIT", "differs", "new_notes"]

NOTE_LIMIT = 500
"""Characters of a job's note."""
_NUMBER = re.compile(r"[\d.]+")


def new_notes(plan: Plan, jobs: Sequence[Job]) -> bool:
    """Whether the plan explains any job otherwise than its row does; numbers that merely count down do not matter."""
    return any(job.id in plan.notes and differs(job.note, str(plan.notes[job.id])) for job in jobs)


def differs(old: str, new: str) -> bool:
    """Whether two notes differ in more than their numbers."""
    return old != new[:NOTE_LIMIT] and _NUMBER.sub("#", old) != _NUMBER.sub("#", new[:NOTE_LIMIT])
