"""Which deadlines are kept: decided on what the GPUs can do over time, running jobs included, at every plan anew.

Jobs are taken earliest deadline first. Each is given the fewest GPUs, slot of time by slot of time, that end it by
its deadline (progressive filling with the minimum satisfactory share, as in Gu et al., "ElasticFlow", ASPLOS '23):
first of what no running job holds, else also of what jobs hold that are due later. A running job that is in the way
keeps as many of its GPUs as it can, or moves to a later time at the price of a pause, and may lend the rest now. Where
a job fits nowhere, the largest one accepted so far that makes room for it loses its deadline instead, or else the job
itself (Moore, "An n job, one machine sequencing algorithm for minimizing the number of late jobs", 1968, on the real
profile).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from prompttuner.policy.contract.snapshot import Floats, Ints, JobPhase, Snapshot
from prompttuner.policy.estimate import Estimate
from prompttuner.policy.prompttuner.profile import EPS, Fit, Grid, fit, make_grid
from prompttuner.policy.prompttuner.switches import Switches

__all__ = ["Accepted", "Outlook", "accept"]

JUDGED = 256
"""Waiting jobs that are judged in one pass, at most, earliest deadline first: more cannot start before the next one."""
CHANGES = 64
"""Jobs, at most, that are put last in one pass; who is behind them is judged in the next."""
TRIES = 8
"""Larger jobs that are tried, at most, in the place of one that does not fit."""


@dataclass(slots=True)
class Accepted:
    """What was decided; rows of ``snapshot.jobs``."""

    dropped: dict[int, float] = field(default_factory=dict)
    """Jobs that are put last -> their GPU-seconds."""
    shares: dict[int, float] = field(default_factory=dict)
    """GPUs of each accepted waiting job in the slot of time that begins now."""
    pressing: set[int] = field(default_factory=set)
    """Those of them that are in time only if others lend or give up GPUs."""
    lend: dict[int, int] = field(default_factory=dict)
    """Running jobs -> GPUs that they can do without now."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Columns of a pass, by job row."""

    work: Floats
    """One-member seconds left as planned."""
    ends: Floats
    """Predicted end with the members it has; inf where it does not run."""
    margin_s: float


@dataclass(slots=True)
class _Job:
    row: int
    due: float
    work: float
    fixed: float
    low: int
    speeds: Floats
    size: float
    """GPU-seconds left."""
    have: int = 0
    used: Floats = field(default_factory=lambda: np.zeros(0))


def accept(
    snapshot: Snapshot, rules: Switches, guess: Estimate, outlook: Outlook, waiting: Ints, running: Ints
) -> Accepted:
    """Judge the waiting rows and the running ones; all of them have a deadline that counts and lies ahead."""
    deadline = snapshot.jobs.deadline
    if len(waiting) > JUDGED:
        waiting = waiting[np.argpartition(deadline[waiting], JUDGED)[:JUDGED]]
    if not len(waiting):
        return Accepted()
    judge = _Judge(snapshot, rules, guess, outlook, waiting, running)
    for row in waiting[np.lexsort((waiting, deadline[waiting]))].tolist():
        judge.until(float(deadline[row]))
        if len(judge.found.dropped) < CHANGES:
            judge.newcomer(judge.job(row))
    judge.until(float("inf"))
    return judge.found


class _Judge:
    """The profile of free GPUs while jobs are judged in turn.

    ``free`` is what is left of each slot's GPUs after all that was accepted and all that runs; below 0 where jobs still
    to be judged must give way. What these hold is ``held`` (one row a running job, by deadline), and ``behind[i]`` the
    sum of its rows from i on: what may be taken beyond ``free`` at the turn of row i.
    """

    def __init__(
        self, snapshot: Snapshot, rules: Switches, guess: Estimate, outlook: Outlook, waiting: Ints, running: Ints
    ) -> None:
        jobs, now, tick = snapshot.jobs, snapshot.now, snapshot.tick_s
        self.snapshot, self.guess, self.outlook = snapshot, guess, outlook
        self.found = Accepted()
        self.speeds = [np.array(table) for table in guess.speeds]
        marks = np.concatenate([jobs.deadline[waiting] - outlook.margin_s, outlook.ends[running]])
        self.grid: Grid = make_grid(snapshot, marks)
        running = running[np.lexsort((running, jobs.deadline[running]))]
        held = self.grid.until(outlook.ends[running]) * guess.members[running][:, None]
        # who has just begun, looks up a prompt or meets anew is left alone
        settled = (jobs.phase[running] == JobPhase.RUNNING) & (now - jobs.phase_since[running] >= 2 * tick)
        settled &= rules.resize
        self.free = rules.overload * self.grid.gpus - held.sum(axis=0)
        self.running, self.held = running[settled].tolist(), held[settled]
        self.behind = np.zeros((len(self.running) + 1, len(self.free)))
        self.behind[:-1] = np.cumsum(self.held[::-1], axis=0)[::-1]
        self.due = jobs.deadline[running[settled]]
        self.late = np.flatnonzero(outlook.ends[running[settled]] > self.due - 0.5 * outlook.margin_s)
        """Indices of running jobs that will miss their deadline as they run."""
        self.sizes = guess.members[running[settled]] * (outlook.ends[running[settled]] - now)
        """GPU-seconds that running jobs have to go."""
        self.next = 0
        self.done: list[_Job] = []
        """Accepted so far, running ones that were left as they are excepted."""
        self.moved: set[int] = set()
        """Indices of running jobs that were not left as they are."""

    def job(self, row: int, have: int = 0) -> _Job:
        jobs, guess = self.snapshot.jobs, self.guess
        pool, top = int(jobs.pool[row]), int(guess.top[row])
        work, fixed, low = float(self.outlook.work[row]), float(guess.fixed[row]), max(int(jobs.min_gpus[row]), 1)
        speeds = self.speeds[pool][: top + 1]
        if have:
            size = have * (float(self.outlook.ends[row]) - self.snapshot.now)
        else:
            size = low * (fixed + work / float(speeds[low]))
        return _Job(row, float(jobs.deadline[row]) - self.outlook.margin_s, work, fixed, low, speeds, size, have)

    def until(self, deadline: float) -> None:
        """The turn of running jobs that are due before."""
        stop = int(np.searchsorted(self.due, deadline, side="right"))
        while self.next < stop:
            i = self._in_the_way(stop)
            self.next = min(i + 1, stop)
            if i < stop:
                self._give_way(i, self.running[i])

    def _in_the_way(self, stop: int) -> int:
        """The next running job that is late, or after which too little is left for those behind; ``stop``: none."""
        late = int(np.searchsorted(self.late, self.next))
        stop = min(stop, int(self.late[late])) if late < len(self.late) else stop
        low, high = self.next, stop
        if float(self.free.min()) >= -EPS:
            return stop
        while low < high:
            middle = (low + high) // 2
            if float((self.free + self.behind[middle + 1]).min()) < -EPS:
                high = middle
            else:
                low = middle + 1
        return low

    def _give_way(self, i: int, row: int) -> None:
        """A running job that is late, or whose GPUs others were given, keeps what it can."""
        profile = self.snapshot.pools[int(self.snapshot.jobs.pool[row])]
        job = self.job(row, int(self.guess.members[row]))
        self.free = self.free + self.held[i]
        self.moved.add(i)
        late = float(self.outlook.ends[row]) > self.due[i] - 0.5 * self.outlook.margin_s
        found = None if late else self._shrunk(job, profile.resize_s + self.snapshot.tick_s)
        if found is None:
            job.fixed = profile.warm_s + profile.resize_s + 3 * self.snapshot.tick_s
            found = self._place(job)
        if found is None:
            self.found.lend[row] = job.have
            return
        self._take(job, found)
        keep = int(found.now + 0.5)
        keep = keep if keep >= job.low else 0
        if keep < job.have:
            self.found.lend[row] = job.have - keep

    def newcomer(self, job: _Job) -> None:
        """The turn of a waiting job; one that is late even alone is left to others."""
        if job.fixed + job.work / float(job.speeds[-1]) > job.due - self.snapshot.now:
            return
        found = self._place(job)
        if found is not None:
            self._take(job, found)
            self.found.shares[job.row] = found.now

    def _place(self, job: _Job) -> Fit | None:
        """Where it fits; a larger job may be put last for it, or else it is itself."""
        found = fit(self.grid, self.free, job.due, job.work, job.fixed, job.low, job.speeds)
        if found is not None:
            return found
        hard = self.free + self.behind[self.next]
        found = fit(self.grid, hard, job.due, job.work, job.fixed, job.low, job.speeds) if self.held.size else None
        if found is None:
            found = self._instead(job, hard)
        if found is not None:
            self.found.pressing.add(job.row)
        return found

    def _instead(self, job: _Job, hard: Floats) -> Fit | None:
        """Put the largest job last that makes room for this one; None where none does, and it is put last itself."""
        larger = [other for other in self.done if other.size > job.size]
        able = np.flatnonzero(self.sizes[: self.next] > job.size)
        for i in able[np.argsort(-self.sizes[able], kind="stable")].tolist():
            if len(larger) >= len(self.done) + TRIES:
                break
            if i not in self.moved:
                other = self.job(self.running[i], int(self.guess.members[self.running[i]]))
                other.used = self.held[i]
                larger.append(other)
        larger.sort(key=lambda other: (-other.size, other.row))
        for other in larger[:TRIES]:
            found = fit(self.grid, hard + other.used, job.due, job.work, job.fixed, job.low, job.speeds)
            if found is not None:
                self._drop(other)
                return found
        self.found.dropped[job.row] = job.size
        return None

    def _drop(self, job: _Job) -> None:
        self.free = self.free + job.used
        self.found.dropped[job.row] = job.size
        self.found.shares.pop(job.row, None)
        self.found.pressing.discard(job.row)
        if job in self.done:
            self.done.remove(job)
        elif job.have:
            self.moved.add(self.running.index(job.row))
        if job.have:
            self.found.lend[job.row] = job.have

    def _take(self, job: _Job, found: Fit) -> None:
        job.used = found.used
        self.free = self.free - found.used
        self.done.append(job)

    def _shrunk(self, job: _Job, pause_s: float) -> Fit | None:
        """As many of its GPUs as it can keep from now to its end, one less at the least."""
        hard = self.free + self.behind[self.next]
        for keep in range(min(job.have - 1, len(job.speeds) - 1), job.low - 1, -1):
            end = self.snapshot.now + pause_s + job.work / float(job.speeds[keep])
            if end > job.due:
                return None
            used = keep * self.grid.until(np.array([end]))[0]
            if bool((used <= hard + EPS).all()):
                return Fit(used, keep)
        return None
