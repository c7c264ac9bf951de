"""What is expected: pools with their profiles, iterations still to do, what the bank may bring, arrivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prompttuner import profiles
from prompttuner.controller.plan.experience import Arrived, Experience, data_key
from prompttuner.controller.plan.iterations import Remaining, remaining_iterations
from prompttuner.controller.plan.paced_jobs import stated_bank, stated_remaining, stated_speedup, stated_step_s
from prompttuner.controller.plan.pools import Pool, pool_of
from prompttuner.controller.plan.snapshot import BankOutlook
from prompttuner.controller.resources import Resources
from prompttuner.controller.upkeep.harvest import BankView
from prompttuner.db.queries import jobs as job_rows
from prompttuner.db.queries.allocations import one_of_each_pool
from prompttuner.db.tables.models import Allocation, Job
from prompttuner.db.tables.recorded import place_of
from prompttuner.policy.contract.snapshot import PoolProfile
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.protocol.wire import Unread

__all__ = ["Expectations", "Outlook"]

BANK_FACTOR = BankOutlook(0.2, 0.85)
"""What a lookup is assumed to leave of the iterations: median 0.20 and P90 0.84 over the 42 pairs that
benchmarks/bank.py measured on the small model (benchmarks/results/bank_pairs.csv)."""


@dataclass(slots=True)
class Outlook:
    """What is expected of jobs and pools at one moment."""

    pools: list[Pool]
    profiles: dict[str, PoolProfile]
    """By pool key."""
    remaining: dict[str, Remaining]
    """By job id."""
    bank: dict[str, BankOutlook]
    arrivals: dict[str, list[Arrived]]
    step_s: dict[str, float]
    """By job id, where it is known beforehand (paced jobs)."""
    measured: frozenset[str] = frozenset()
    """Pools whose seconds an iteration are measured, or stated by their paced jobs."""


class Expectations:
    """What is expected of jobs and pools; remembers what does not change, or only slowly."""

    def __init__(self, resources: Resources, bank: BankView) -> None:
        self._res = resources
        self._bank = bank
        self._experience = Experience(resources)
        self._pools: dict[str, Pool] = {}
        """Pools met so far, by key."""
        self._specs: dict[str, ResolvedSpec] = {}

    def of(self, jobs: Sequence[Job], allocations: Sequence[Allocation]) -> Outlook:
        """Expectations for these jobs and allocations, and for the pools that may have jobs again soon."""
        specs = self.specs_of(jobs)
        present = {job.pool for job in jobs} | {allocation.pool for allocation in allocations}
        history = self._experience.of(tuple(sorted(present)))
        pools = self._pools_of(jobs, specs, present, history.foreseen())
        paced = _paced_speedups(jobs, specs)
        banked = {job.pool for job in jobs if stated_bank(specs[job.id])}
        return Outlook(
            pools,
            {pool.key: _profile(pool, history.speeds, history.startups, paced.get(pool.key)) for pool in pools},
            {job.id: _remaining(job, specs[job.id], history.itas) for job in jobs},
            {pool.key: BANK_FACTOR for pool in pools if pool.key in banked or self._bank.holds(pool.model)},
            history.arrivals,
            stated_step_s(specs),
            frozenset({row.pool for row in history.speeds if row.iters_per_s > 0} | paced.keys()),
        )

    def specs_of(self, jobs: Sequence[Job]) -> Mapping[str, ResolvedSpec]:
        """Resolved specs by job id: they never change, so each is read from the database once.

        One that cannot be understood (a row that was changed by hand) is missing, and told.
        """
        if any(job.id not in self._specs for job in jobs):
            rows = self._res.state.query(job_rows.active_specs)
            read = {job: ResolvedSpec.read(value) for job, value in rows.items()}
            for job, spec in read.items():
                if isinstance(spec, Unread):
                    self._res.warn(f"{job} cannot be planned: {spec.why}")
            self._specs = {job: spec for job, spec in read.items() if not isinstance(spec, Unread)}
        return self._specs

    def _pools_of(
        self, jobs: Sequence[Job], specs: Mapping[str, ResolvedSpec], present: set[str], foreseen: set[str]
    ) -> list[Pool]:
        """The pools of what is there; of those that are only foreseen, the ones an allocation tells the set-up of."""
        for job in jobs:
            if job.pool not in self._pools:
                self._pools[job.pool] = pool_of(specs[job.id])
        unknown = (present | foreseen) - self._pools.keys()
        if unknown:
            for key, model, place in self._res.state.query(lambda session: one_of_each_pool(session, unknown)):
                self._pools[key] = Pool.from_record(key, model, place_of(place))
        return [self._pools[key] for key in sorted(present | (foreseen & self._pools.keys()))]


def _remaining(job: Job, spec: ResolvedSpec, known: Mapping[Any, tuple[float, float]]) -> Remaining:
    if (stated := stated_remaining(job, spec)) is not None:
        return stated
    past = known.get((job.pool, data_key(spec))) or known.get(job.pool)
    # A metric that is not a number is kept as null; the others still make a curve.
    evaluations = [(int(step), float(value)) for step, value in job.evaluations or () if value is not None]
    return remaining_iterations(spec, job.step, evaluations, past)


def _paced_speedups(jobs: Sequence[Job], specs: Mapping[str, ResolvedSpec]) -> dict[str, tuple[tuple[int, float], ...]]:
    """By pool: the longest speed-up table that its paced jobs state."""
    longest: dict[str, tuple[tuple[int, float], ...]] = {}
    for job in jobs:
        table = stated_speedup(specs[job.id])
        if table is not None and len(table) > len(longest.get(job.pool, ())):
            longest[job.pool] = table
    return longest


def _profile(
    pool: Pool, speeds: Sequence[Any], startups: Sequence[Any], paced: tuple[tuple[int, float], ...] | None
) -> PoolProfile:
    """The pool's profile: measured figures where there are any, the stated ones else; speed-ups of ``paced`` jobs."""
    label = pool.key.rpartition("-")[0]
    profile = replace(profiles.stated([label])[label], name=pool.key)
    times = {row.kind: row.seconds for row in startups if row.pool == pool.key}
    fields = {
        "queue": "queue_s",
        "start": "start_s",
        "warm": "warm_s",
        "resize": "resize_s",
        "switch": "switch_s",
        "lookup": "lookup_s",
    }
    measured: dict[str, Any] = {field: times[kind] for kind, field in fields.items() if kind in times}
    rates = {row.members: row.iters_per_s for row in speeds if row.pool == pool.key and row.iters_per_s > 0}
    if paced is not None:
        measured["speedup"] = paced
    elif 1 in rates:
        measured["step_s"] = 1.0 / rates[1]
        gains = {n: rate / rates[1] for n, rate in rates.items()}
        gains = {**{n: g for n, g in profile.speedup if n not in gains}, **gains}
        measured["speedup"] = _monotone(gains)
    if measured:
        measured["origin"] = "measured by this controller" if len(measured) > 1 else profile.origin
    return replace(profile, **measured) if measured else profile


def _monotone(gains: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    """Speed-ups that begin with (1, 1.0) and never fall: noise must not make fewer GPUs look quicker."""
    out, best = [], 1.0
    for members in sorted(gains):
        best = max(best, 1.0 if members == 1 else gains[members])
        out.append((members, best))
    return tuple(out)
