"""One planning pass of the prompttuner policy: its working columns, and the actions gathered so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prompttuner.policy.contract.plan import Action, Assign, Plan, Reason, Why
from prompttuner.policy.contract.snapshot import AgentPhase, Floats, Ints, JobPhase, Jobs, Snapshot
from prompttuner.policy.estimate import Estimate, estimate
from prompttuner.policy.prompttuner.accepting import Accepted, Outlook, accept
from prompttuner.policy.prompttuner.switches import Switches
from prompttuner.policy.prompttuner.timeline import Timeline, build_timeline
from prompttuner.policy.stopping import next_stop, stops
from prompttuner.words import Counted

__all__ = ["Pass", "open_pass"]


@dataclass(slots=True)
class Pass:
    """What the steps of one pass share. Rows are rows of ``snapshot.jobs`` and ``snapshot.agents``."""

    snapshot: Snapshot
    rules: Switches
    guess: Estimate
    work: Floats
    """One-member seconds left as planned (between median and quantile), by job row."""
    plain: Floats
    """The same without a lookup."""
    fixed: Floats
    ends: Floats
    """Predicted end of each running job with the members it has; inf for the rest."""
    needs: Ints
    """Fewest members with which each running job meets its deadline; 0 where none suffice."""
    timely: NDArray[np.bool_]
    """Has a deadline that counts."""
    margin_s: float
    timeline: Timeline
    waiting: Ints
    """Waiting jobs that may run."""
    needy: Ints
    """Running jobs that need more members than they have."""
    stopped: set[int]
    accepted: Accepted
    """Which deadlines are kept, and who can lend."""
    actions: list[Action] = field(default_factory=list)
    notes: dict[str, Reason] = field(default_factory=dict)
    leaving: dict[int, set[int]] = field(default_factory=dict)
    """Job row -> agent rows to be taken from it."""
    causes: dict[int, Reason] = field(default_factory=dict)
    """Why they are taken."""
    touched: set[int] = field(default_factory=set)
    """Job rows whose membership this pass changes."""
    late: list[int] = field(default_factory=list)
    """Waiting jobs whose deadline does not fit into the plan."""
    expected: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Pool -> (agents to be kept for jobs that are expected, until when)."""
    behind: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Waiting jobs with a deadline that are not placed in this pass."""
    ahead: int = 0
    """Jobs before them."""
    lenders: list[int] | None = None
    """Running jobs that can lend, in the order in which they are asked; None: not yet needed."""
    wake_at: float = float("inf")
    _members: dict[int, list[int]] | None = None

    def members(self, row: int) -> list[int]:
        """Agent rows of a job, in the order of the columns."""
        if self._members is None:
            agents = self.snapshot.agents
            busy = np.flatnonzero((agents.phase == AgentPhase.BUSY) & (agents.job >= 0))
            table: dict[int, list[int]] = {}
            for agent, job in zip(busy.tolist(), agents.job[busy].tolist(), strict=True):
                table.setdefault(job, []).append(agent)
            self._members = table
        return self._members.get(row, [])

    def assign(self, row: int, agents: list[int], why: Reason, lookup_s: float = 0.0) -> None:
        """Give a job these agents (ids), with the reason and the seconds a look-up may take."""
        ids = self.snapshot.agents.id
        self.actions.append(Assign(self.snapshot.jobs.id[row], tuple(ids[a] for a in agents), why, lookup_s))
        self.touched.add(row)

    def take_spare(self, agent: int, why: Reason) -> None:
        """A SPARE agent leaves its job."""
        job = self.timeline.spare_rows[agent]
        self.leaving.setdefault(job, set()).add(agent)
        self.causes[job] = why

    def wake(self, at: float) -> None:
        """Ask to be planned again at this time at the latest."""
        if at > self.snapshot.now:
            self.wake_at = min(self.wake_at, at)

    def finish(self) -> Plan:
        """All actions: first those that free agents."""
        jobs = self.snapshot.jobs
        first: list[Action] = []
        low = jobs.min_gpus
        for row, gone in self.leaving.items():
            if row in self.touched or row in self.stopped:
                continue
            stay = [a for a in self.members(row) if a not in gone]
            if len(stay) < int(low[row]):
                stay = []
            ids = self.snapshot.agents.id
            first.append(Assign(jobs.id[row], tuple(ids[a] for a in stay), self.causes[row]))
        plan = Plan(first + self.actions, min(self.wake_at, next_stop(self.snapshot)))
        plan.notes = _Notes(self, self.notes)
        return plan


class _Notes(Mapping[str, Reason]):
    """Notes of waiting jobs as gathered; those of running jobs are made when asked for, from columns kept aside."""

    def __init__(self, work: Pass, ready: dict[str, Reason]) -> None:
        jobs = work.snapshot.jobs
        running = np.flatnonzero(work.guess.members > 0)
        self._ready = ready
        self._names = [jobs.id[row] for row in running.tolist()]
        self._columns = (
            work.guess.members[running],
            work.ends[running] - work.snapshot.now,
            np.where(jobs.best_effort, np.inf, jobs.deadline)[running] - work.snapshot.now,
            work.needs[running],
        )
        rows = work.behind
        # copies: the owner of the snapshot goes on to change it in place
        self._waits = (jobs.id.copy() if len(rows) else [], jobs.deadline[rows], rows, work.ahead)
        self._queue: dict[str, Reason] | None = None
        self._rows: dict[str, int] | None = None

    def _behind(self) -> dict[str, Reason]:
        """Jobs that wait their turn, by deadline."""
        if self._queue is None:
            names, due, rows, ahead = self._waits
            self._queue = {}
            for place, row in enumerate(rows[np.lexsort((rows, due))].tolist()):
                text = "waits behind {}, due earlier"
                self._queue[names[row]] = Why(text, Counted(ahead + place, "job"))
        return self._queue

    def _lazy(self) -> dict[str, int]:
        if self._rows is None:
            self._rows = {name: i for i, name in enumerate(self._names) if name not in self._ready}
        return self._rows

    def __getitem__(self, name: str) -> Reason:
        if name in self._ready:
            return self._ready[name]
        if name in self._behind():
            return self._behind()[name]
        members, end, left, need = (column[self._lazy()[name]] for column in self._columns)
        if not np.isfinite(left):
            text = "best effort: keeps {} until a job with a deadline needs GPUs, ends in about {:.0f} s"
            return Why(text, Counted(int(members), "GPU"), float(end))
        text = "keeps {}: predicted end in {:.0f} s, deadline in {:.0f} s; {}"
        more = f"{int(need)} would do, more come if it falls behind" if need else "no number of GPUs would meet it"
        return Why(text, Counted(int(members), "GPU"), float(end), float(left), more)

    def __iter__(self) -> Iterator[str]:
        yield from self._ready
        yield from (name for name in self._behind() if name not in self._ready)
        yield from self._lazy()

    def __len__(self) -> int:
        return sum(1 for _ in self)


def open_pass(snapshot: Snapshot, rules: Switches) -> Pass:
    """All columns of a pass, computed at once; Stops are the first actions."""
    jobs, now = snapshot.jobs, snapshot.now
    guess = estimate(snapshot, rules.bank)
    margin = rules.margin_ticks * snapshot.tick_s
    share = rules.caution
    work = guess.work_mid + share * (guess.work - guess.work_mid)
    plain_mid = jobs.step_s * jobs.iters_mid
    plain = plain_mid + share * (guess.work_plain - plain_mid)
    running = guess.members > 0
    speed = _speeds(guess, jobs.pool, np.maximum(guess.members, 1))
    ends = np.where(running, now + guess.fixed + work / speed, np.inf)
    counts = ~jobs.best_effort & np.isfinite(jobs.deadline)
    needs = _needs(guess, jobs, work, np.where(counts, jobs.deadline - now - margin - guess.fixed, np.inf), counts)
    late = running & counts & (ends + margin * 0.5 > jobs.deadline)
    stopping = jobs.stop_on_miss & (now > jobs.deadline)
    spare = _spare(snapshot, guess, counts, work, rules.margin_ticks)
    waiting = np.flatnonzero((jobs.phase == JobPhase.WAITING) & ~running & ~stopping)
    rests = _rests_until(snapshot, waiting)
    waiting = waiting[rests <= now]
    chosen = Accepted()
    if rules.rescue:
        urgent = waiting[counts[waiting] & (jobs.deadline[waiting] > now)]
        outlook = Outlook(work, ends, margin)
        chosen = accept(
            snapshot, rules, guess, outlook, urgent, np.flatnonzero(running & counts & (jobs.deadline > now))
        )
        spare[list(chosen.lend)] = 0
    timeline = build_timeline(snapshot, ends, spare if rules.resize else np.zeros_like(spare))
    hopeful = running & counts & (jobs.deadline > now)
    needy = np.flatnonzero(late & hopeful & (needs > guess.members)) if rules.resize else np.zeros(0, dtype=np.int64)
    found = Pass(
        snapshot=snapshot,
        rules=rules,
        guess=guess,
        work=work,
        plain=plain,
        fixed=guess.fixed,
        ends=ends,
        needs=needs,
        timely=counts.copy(),
        margin_s=margin,
        timeline=timeline,
        waiting=waiting,
        accepted=chosen,
        needy=needy,
        stopped=set(np.flatnonzero(stopping).tolist()),
    )
    found.actions.extend(stops(snapshot, stopping))
    found.wake(float(rests[rests > now].min(initial=np.inf)))
    return found


def _needs(guess: Estimate, jobs: Jobs, work: Floats, left: Floats, counts: NDArray[np.bool_]) -> Ints:
    """Fewest members with which each job that runs ends within ``left`` seconds, 0 where none suffice."""
    needs = jobs.min_gpus.copy()
    rows = np.flatnonzero((guess.members > 0) & counts)
    fewest = _fewest(guess, jobs.pool[rows], work[rows], left[rows])
    fewest = np.where(fewest > 0, np.maximum(fewest, jobs.min_gpus[rows]), 0)
    needs[rows] = np.where(fewest > guess.top[rows], 0, fewest)
    return needs


def _spare(snapshot: Snapshot, guess: Estimate, counts: NDArray[np.bool_], work: Floats, margin_ticks: float) -> Ints:
    """Members each running job can do without, after the pause that taking them costs."""
    jobs, now = snapshot.jobs, snapshot.now
    spare = np.zeros(jobs.n, dtype=np.int64)
    rows = np.flatnonzero((guess.members > 0) & (jobs.phase == JobPhase.RUNNING))
    pool, have, load, timely = jobs.pool[rows], guess.members[rows], work[rows], counts[rows]
    pause = np.array([p.resize_s for p in snapshot.pools])[pool] + (margin_ticks + 1.0) * snapshot.tick_s
    left = np.where(timely, jobs.deadline[rows] - now, np.inf)
    enough = _fewest(guess, pool, load, left - pause)
    free = ~timely | (left < load / _speeds(guess, pool, guess.top[rows]))
    keep = np.where(enough > 0, np.maximum(enough, jobs.min_gpus[rows]), have)
    spare[rows] = np.where(free, have, np.maximum(have - keep, 0))
    return spare


def _rests_until(snapshot: Snapshot, waiting: Ints) -> Floats:
    """Until when to leave alone who was paused: to go on at once would make the pause a mistake."""
    jobs, tick = snapshot.jobs, snapshot.tick_s
    rest = 2.0 * (np.array([p.resize_s for p in snapshot.pools])[jobs.pool[waiting]] + tick)
    since = jobs.phase_since[waiting]
    return np.where(since > jobs.submit[waiting] + tick, since + rest, -np.inf)


def _speeds(guess: Estimate, pool: Ints, members: Ints) -> Floats:
    table = np.array(guess.speeds)
    return np.asarray(table[pool, np.minimum(members, table.shape[1] - 1)], dtype=np.float64)


def _fewest(guess: Estimate, pool: Ints, work: Floats, left: Floats) -> Ints:
    """Fewest members that do ``work`` within ``left`` seconds; 0 where even the whole table is too slow."""
    out = np.zeros(len(work), dtype=np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = np.where(left > 0, work / left, np.inf)
    for p, table in enumerate(guess.speeds):
        rows = np.flatnonzero(pool == p)
        n = np.searchsorted(np.array(table), wanted[rows] * (1 - 1e-9))
        out[rows] = np.where(n < len(table), np.maximum(n, 1), 0)
    return out
