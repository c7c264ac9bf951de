"""When agents come free, by pool: the future against which waiting jobs are planned, one after the other."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

import numpy as np

from prompttuner.policy.contract.snapshot import AgentPhase, Floats, Ints, Snapshot
from prompttuner.policy.estimate import room

__all__ = ["Entry", "Kind", "Timeline", "build_timeline"]


class Kind(IntEnum):
    """Why an agent is free at its time; lower is taken first among equal times."""

    IDLE = 0
    COMING = 1
    """Starting, switching, queued in Slurm or leaving a job."""
    SPARE = 2
    """Busy, but its job can do without it (more GPUs than its deadline needs, or best effort)."""
    BUSY = 3
    """Free once its job ends."""
    PLANNED = 4
    """Free once a job placed in this very pass ends."""


Entry: TypeAlias = tuple[float, int, int, int, int]
"""(time, kind, rank among equals, agent row or -1, pool)."""


@dataclass(slots=True)
class Timeline:
    """Agents not yet promised, by pool, each list ascending in time."""

    now: float
    pools: list[list[Entry]]
    every: list[Entry]
    """Those of all pools."""
    room: int
    """Allocations that may still be asked for."""
    cold_at: list[float]
    """For each pool: when an allocation asked for now is warm."""
    switch_s: list[float]
    coming: list[int]
    """COMING entries in each pool's list."""
    spare_rows: dict[int, int] = field(default_factory=dict)
    """Agent row -> job row, for SPARE entries."""

    def elsewhere(self, pool: int, most: int) -> list[tuple[float, Entry]]:
        """(time it would have this pool's LLM, entry) of other pools' earliest agents, ascending."""
        delay, now = self.switch_s[pool], self.now
        if len(self.pools) < 2:
            return []
        found: list[tuple[float, Entry]] = []
        for entry in self.every:
            if len(found) >= most:
                break
            if entry[4] != pool:
                found.append((max(entry[0], now) + delay, entry))
        return found

    def startable(self) -> bool:
        """Something could begin now: an agent is idle, or one may be asked for."""
        return self.room > 0 or (len(self.every) > 0 and self.every[0][1] == Kind.IDLE)

    def pick(self, pool: int, count: int, patient: float, latest: float = float("inf")) -> list[Entry]:
        """The pool's earliest agents, ``count`` at most.

        Those that come free by themselves (or are) until ``latest``, those that a job must end for until ``patient``.
        """
        picked: list[Entry] = []
        coming = self.coming[pool]
        for entry in self.pools[pool]:
            at, kind = entry[0], entry[1]
            if len(picked) == count or at > latest or (at > patient and not coming):
                break
            if kind == Kind.COMING:
                coming -= 1
            if kind < Kind.BUSY or at <= patient:
                picked.append(entry)
        return picked

    def take(self, entries: Iterable[Entry]) -> None:
        """Promise these agents."""
        for entry in entries:
            pool = entry[4]
            for row in (self.pools[pool], self.every):
                del row[bisect_left(row, entry)]
            self.coming[pool] -= entry[1] == Kind.COMING

    def drop(self, pool: int, at: float, agent: int) -> None:
        """An agent (row) of a job that ends at this time is promised outside of the timeline, if not already in it."""
        entry = (max(at, self.now), int(Kind.BUSY), 0, agent, pool)
        place = bisect_left(self.pools[pool], entry)
        if self.pools[pool][place : place + 1] == [entry]:
            self.take([entry])

    def give(self, pool: int, at: float, count: int) -> None:
        """Agents of a job placed in this pass come free."""
        entry = (at, int(Kind.PLANNED), 0, -1, pool)
        for _ in range(count):
            insort(self.pools[pool], entry)
            insort(self.every, entry)


def build_timeline(snapshot: Snapshot, ends: Floats, spare: Ints) -> Timeline:
    """The future of a snapshot's agents.

    Args:
        ends: for each job, when it is predicted to end as it runs now.
        spare: for each job, how many of its members it can do without.
    A SPARE agent is free one tick from now.
    """
    agents, now = snapshot.agents, snapshot.now
    phase, known = agents.phase, agents.pool >= 0
    ready = np.maximum(agents.ready_at, now)
    kind = np.full(agents.n, int(Kind.COMING), dtype=np.int64)
    rank = np.zeros(agents.n, dtype=np.int64)
    idle = np.flatnonzero((phase == AgentPhase.WARM) & known)
    kind[idle] = Kind.IDLE
    ready[idle] = now
    # the one idle for the shortest time is taken first, so that the others can be released
    rank[idle[np.lexsort((idle, -agents.since[idle]))]] = np.arange(len(idle))
    member = np.flatnonzero((phase == AgentPhase.BUSY) & (agents.job >= 0) & known)
    owner = agents.job[member]
    ready[member] = np.maximum(ends[owner], now)
    kind[member] = Kind.BUSY
    spare_rows: dict[int, int] = {}
    if spare.any():
        extra = member[spare[owner] > 0]
        left: dict[int, int] = {}
        for row, job in zip(extra[::-1].tolist(), agents.job[extra[::-1]].tolist(), strict=True):
            left.setdefault(job, int(spare[job]))
            if left[job] > 0:
                left[job] -= 1
                spare_rows[row] = job
        rows = np.fromiter(spare_rows, dtype=np.int64, count=len(spare_rows))
        kind[rows] = Kind.SPARE
        ready[rows] = now + snapshot.tick_s
    alive = np.flatnonzero(known & (phase != AgentPhase.DRAINING))
    alive = alive[np.lexsort((alive, rank[alive], kind[alive], ready[alive]))]
    columns = (ready, kind, rank)
    every = list(zip(*(c[alive].tolist() for c in columns), alive.tolist(), agents.pool[alive].tolist(), strict=True))
    every.sort()  # nearly sorted already; pools break ties
    pools: list[list[Entry]] = [[] for _ in snapshot.pools]
    for entry in every:
        pools[entry[4]].append(entry)
    return Timeline(
        now=now,
        pools=pools,
        every=every,
        room=room(snapshot),
        cold_at=[now + p.queue_s + p.start_s for p in snapshot.pools],
        switch_s=[p.switch_s for p in snapshot.pools],
        coming=[sum(entry[1] == Kind.COMING for entry in entries) for entries in pools],
        spare_rows=spare_rows,
    )
