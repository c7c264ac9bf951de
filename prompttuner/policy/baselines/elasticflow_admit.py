"""ElasticFlow's admission on plain numbers: which arrivals can be planned without making any job late."""

from __future__ import annotations

from collections.abc import Sequence

from prompttuner.policy.baselines.elasticflow_share import EfJob, Free, place

__all__ = ["Admission"]

EVERY = 64
"""The free GPUs are remembered after so many jobs, by deadline: a trial begins at the last such mark before it."""


class Admission:
    """The plan of all admitted jobs, by deadline, to which arrivals are added where nobody becomes late.

    Earlier deadlines are planned first, so an arrival changes nothing before its own: a trial plans only the jobs due
    after it, and ends with the first that would be late.
    """

    def __init__(self, admitted: Sequence[EfJob], gpus: int, now: float, slot: float) -> None:
        self._now, self._slot = now, slot
        self._jobs: list[EfJob] = []
        self._marks = [Free([now], [gpus])]
        self.full = not self._insert(list(admitted))
        """An admitted job is late already: nobody else is admitted."""

    def add(self, group: Sequence[EfJob]) -> bool:
        """Admit all of the group, or none; False where any job, old or new, would be late."""
        return not self.full and self._insert(list(group))

    def add_each(self, arrivals: Sequence[EfJob]) -> list[bool]:
        """Admit arrivals one by one, in order: for each whether it was. Tried in groups first, then in their halves."""
        if self.full or not arrivals:
            return [False] * len(arrivals)
        if self._insert(list(arrivals)):
            return [True] * len(arrivals)
        if len(arrivals) == 1:
            return [False]
        half = len(arrivals) // 2
        return self.add_each(arrivals[:half]) + self.add_each(arrivals[half:])

    def _insert(self, group: list[EfJob]) -> bool:
        if not group:
            return True
        first = min(job.deadline for job in group)
        # among equal deadlines those that were admitted before are planned first
        mark = next((k for k, job in enumerate(self._jobs) if job.deadline > first), len(self._jobs)) // EVERY
        kept = mark * EVERY
        tried = self._jobs[:kept] + sorted(self._jobs[kept:] + group, key=lambda job: job.deadline)
        marks, free = self._marks[: mark + 1], self._marks[mark]
        for k in range(kept, len(tried)):
            plan = place(tried[k], free, self._now, self._slot)
            if plan.late:
                return False
            free = free.with_plan(plan, -1)
            if (k + 1) % EVERY == 0:
                marks.append(free)
        self._jobs, self._marks = tried, marks
        return True
