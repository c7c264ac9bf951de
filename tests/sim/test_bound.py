"""The bounds against a brute-force optimum over all schedules of whole GPUs in unit steps, on tiny cases."""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.errors import SpecError
from prompttuner.policy import POLICIES, get
from prompttuner.policy.contract.snapshot import PoolProfile
from prompttuner.profiles import stated
from prompttuner.sim import SimOptions, simulate
from prompttuner.sim.bound import Overheads, bound, least_cost
from prompttuner.sim.rates import hull_of, speedup_at
from prompttuner.trace.generate import Workload, generate
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple

STATED = ((1, 1.0), (2, 1.95), (4, 3.7), (8, 6.8))


@dataclass(frozen=True)
class Case:
    """A tiny site: one to three jobs of two LLMs, some best effort, with what every schedule pays for each of them."""

    jobs: list[TraceJob]
    gpus: int
    speedups: dict[str, list[tuple[int, float]]]
    bank: bool
    overheads: Overheads

    def sizes(self, job: TraceJob) -> list[int]:
        return list(range(job.min_gpus, min(job.max_gpus, self.gpus) + 1))

    def ways(self, job: TraceJob) -> list[tuple[float, float]]:
        """(seconds of lookup, work) that end the job: as it is, or after a lookup."""
        found = (self.overheads.lookup_s, round(job.work_s * job.bank_factor, 9))
        return [(0.0, round(job.work_s, 9)), *([found] if self.bank else [])]

    def least(self, job: TraceJob) -> float:
        """GPU-seconds of the job alone at its most efficient size."""
        rate = max(speedup_at(self.speedups[job.llm], k) / k for k in self.sizes(job))
        return min(work / rate + lookup * job.min_gpus for lookup, work in self.ways(job))


@st.composite
def tiny_cases(draw: st.DrawFn) -> Case:
    gpus = draw(st.integers(1, 3))
    speedups = {}
    for llm in ("m", "other"):
        gains = draw(st.lists(st.floats(0, 1.4), min_size=2, max_size=2))  # falling, rising: concave or not
        speedups[llm] = [(1, 1.0), (2, 1.0 + gains[0]), (3, 1.0 + gains[0] + gains[1])]
    jobs = []
    for k in range(draw(st.integers(1, 3))):
        submit = draw(st.integers(0, 2))
        low = draw(st.integers(1, gpus))
        jobs.append(
            TraceJob(
                id=str(k),
                submit_s=submit,
                llm=draw(st.sampled_from(["m", "other"])),
                iters=draw(st.floats(0.3, 5)),
                step_s=1,
                deadline_s=draw(st.integers(submit + 1, 6) | st.just(math.inf)),
                min_gpus=low,
                max_gpus=draw(st.integers(low, 3)),
                bank_factor=draw(st.floats(0.3, 1.2)),
            )
        )
    overheads = Overheads(start_s=draw(st.sampled_from([0, 0, 1])), lookup_s=draw(st.sampled_from([0, 1, 2])))
    return Case(jobs, gpus, speedups, draw(st.booleans()), overheads)


def brute_force(case: Case) -> dict[frozenset[int], float]:
    """Least GPU-steps by which each subset of the jobs with deadlines is in time; subsets that cannot be are missing.

    A state holds, for each job, steps of lookup and work that are left; nothing is left of a job that is not chosen.
    """
    jobs, begin = case.jobs, case.overheads.start_s

    @cache
    def cheapest(t: int, state: tuple[tuple[float, float], ...]) -> float:
        if not any(map(_open, state)):
            return 0.0
        if any(_open(left) and t >= job.deadline_s for left, job in zip(state, jobs, strict=True)):
            return math.inf
        choices = [
            [0, *case.sizes(job)] if _open(left) and t >= job.submit_s + begin else [0]
            for left, job in zip(state, jobs, strict=True)
        ]
        best = math.inf
        for choice in itertools.product(*choices):
            if sum(choice) <= case.gpus:
                steps = [_step(left, k, case.speedups[j.llm]) for left, k, j in zip(state, choice, jobs, strict=True)]
                best = min(best, sum(held for held, _ in steps) + cheapest(t + 1, tuple(left for _, left in steps)))
        return best

    out = {}
    timed = [i for i, job in enumerate(jobs) if not job.best_effort]
    for count in range(len(timed) + 1):
        for chosen in itertools.combinations(timed, count):
            ways = [case.ways(job) if i in chosen else [(0.0, 0.0)] for i, job in enumerate(jobs)]
            cost = min(cheapest(0, way) for way in itertools.product(*ways))
            if math.isfinite(cost):
                out[frozenset(chosen)] = cost
    return out


def _open(left: tuple[float, float]) -> bool:
    return max(left) > 1e-9


def _step(left: tuple[float, float], gpus: int, speedup: list[tuple[int, float]]) -> tuple[float, tuple[float, float]]:
    """(GPU-seconds held, what is left) after one step; a job that ends within it gives its GPUs back at once."""
    lookup, work = left
    if not gpus:
        return 0.0, left
    if lookup > 1e-9:
        return float(gpus), (lookup - 1, work)
    rate = speedup_at(speedup, gpus)
    return gpus * min(1.0, work / rate), (lookup, round(max(0.0, work - rate), 9))


@settings(deadline=None, max_examples=150)
@given(case=tiny_cases(), slots=st.sampled_from([1, 2, 50]), mip_s=st.sampled_from([0.0, 2.0]))
def test_bounds_never_exceed_the_brute_force_optimum(case: Case, slots: int, mip_s: float) -> None:
    in_time = brute_force(case)
    timed = sum(not job.best_effort for job in case.jobs)
    optimum = timed - max(len(subset) for subset in in_time)
    limits = {"bank": case.bank, "overheads": case.overheads, "slots": slots}
    found = bound(case.jobs, case.gpus, case.speedups, mip_s=mip_s, **limits)
    assert found.unavoidable <= found.violations <= optimum
    least = [case.least(job) for job in case.jobs]
    assert found.work_gpu_s <= sum(least) * (1 + 1e-6)
    if not case.overheads.lookup_s:
        assert found.work_gpu_s == pytest.approx(sum(least))
    for allowed in range(timed + 1):
        costs = [
            cost + sum(least[i] for i in range(len(least)) if i not in subset)
            for subset, cost in in_time.items()
            if timed - len(subset) <= allowed
        ]
        optimal = min(costs, default=math.inf)
        floor = least_cost(case.jobs, case.gpus, case.speedups, violations=allowed, **limits)
        assert floor <= optimal * (1 + 1e-6)
        assert floor >= found.work_gpu_s * (1 - 1e-9)


@st.composite
def small_sites(draw: st.DrawFn) -> tuple[list[TraceJob], dict[str, PoolProfile], SimOptions]:
    """A few jobs of two LLMs, sizes and deadlines of every kind, on a site that is not kind to them."""
    gpus = draw(st.integers(1, 5))
    profiles = {}
    for llm in ("m", "other"):
        two, four = draw(st.floats(1, 2.1)), draw(st.floats(0, 2.2))
        profiles[llm] = replace(
            stated([llm])[llm], speedup=((1, 1.0), (2, two), (4, two + four)),
            start_s=draw(st.sampled_from([0, 2, 10])), warm_s=draw(st.sampled_from([0, 1])),
            lookup_s=draw(st.sampled_from([0, 4])),
        )  # fmt: skip
    jobs = []
    for k in range(draw(st.integers(2, 8))):
        submit, work, low = draw(st.floats(0, 60)), draw(st.floats(3, 90)), draw(st.sampled_from([1, 1, gpus]))
        multiple = draw(st.floats(0.05, 2) | st.just(math.inf))
        jobs.append(
            TraceJob(
                str(k), submit, draw(st.sampled_from(["m", "other"])), work, 1.0, deadline_s=submit + multiple * work,
                min_gpus=low, max_gpus=draw(st.sampled_from([low, 8])), bank_factor=draw(st.floats(0.2, 1.2)),
                priority=draw(st.sampled_from([0, 2])),
            )
        )  # fmt: skip
    options = SimOptions(
        gpus=gpus, tick_s=draw(st.sampled_from([0.2, 1.0])), spool_s=draw(st.sampled_from([0.0, 0.5])),
        daemon=draw(st.booleans()), release_s=draw(st.sampled_from([0, 3])), bank=draw(st.booleans()),
        predict_sigma=draw(st.sampled_from([0, 0.3])), start_sigma=draw(st.sampled_from([0, 0.2])), horizon_s=50_000,
    )  # fmt: skip
    return jobs, profiles, options


@settings(deadline=None, max_examples=10)
@given(site=small_sites(), slots=st.sampled_from([5, 100]))
def test_no_policy_beats_any_bound_on_small_sites(site, slots: int) -> None:
    """Not even the tighter one that knows what a start and a lookup take at the least."""
    jobs, profiles, options = site
    speedups = {name: profile.speedup for name, profile in profiles.items()}
    paid = Overheads(
        start_s=min(profile.warm_s for profile in profiles.values()),
        lookup_s=min(profile.lookup_s for profile in profiles.values()),
    )
    limits = [
        bound(jobs, options.gpus, speedups, bank=options.bank, slots=slots, overheads=one)
        for one in (Overheads(), paid)
    ]
    assert limits[0].violations <= limits[1].violations and limits[0].work_gpu_s <= limits[1].work_gpu_s * (1 + 1e-9)
    for name in sorted(POLICIES):
        result = simulate(jobs, profiles, get(name), options)
        assert result.violations >= limits[1].violations, name
        if any(job.rejected for job in result.jobs):
            continue
        assert result.cost_s >= limits[1].work_gpu_s * (1 - 1e-9), name
        floor = least_cost(
            jobs, options.gpus, speedups, bank=options.bank, slots=slots, overheads=paid, violations=result.violations
        )
        assert result.cost_s >= floor * (1 - 1e-9), name


def test_bound_is_exact_where_jobs_fill_the_cluster() -> None:
    """Two GPUs for 10 s and five jobs of 4 GPU-seconds: at most five fit; with eight jobs, three must miss."""
    jobs = [TraceJob(str(k), 0, "m", 4, 1, deadline_s=10) for k in range(8)]
    found = bound(jobs, 2, {"m": ((1, 1.0), (2, 2.0))}, bank=False)
    assert (found.unavoidable, found.violations, found.work_gpu_s) == (0, 3, pytest.approx(32))
    assert found.violations_lp == pytest.approx(3)


def test_hopeless_jobs_are_unavoidable_and_take_no_capacity() -> None:
    jobs = [
        TraceJob("slow", 0, "m", 100, 1, deadline_s=10, max_gpus=4),
        TraceJob("fine", 0, "m", 10, 1, deadline_s=10),
        TraceJob("whenever", 0, "m", 50, 1),
    ]
    found = bound(jobs, 1, {"m": STATED}, bank=False)
    assert (found.jobs, found.with_deadline, found.unavoidable, found.violations) == (3, 2, 1, 1)
    assert found.unavoidable_ids == ("slow",)
    assert found.work_gpu_s == pytest.approx(160)


def test_hurry_costs_more_than_the_work() -> None:
    """A job that needs 8 GPUs to be in time holds 8/6.8 GPU-seconds for each second of work, unless it may miss."""
    job = TraceJob("a", 0, "m", 68, 1, deadline_s=10)
    assert least_cost([job], 8, {"m": STATED}, bank=False, violations=0) == pytest.approx(80, rel=1e-5)
    assert least_cost([job], 8, {"m": STATED}, bank=False, violations=1) == pytest.approx(68)
    late = TraceJob("b", 0, "m", 69, 1, deadline_s=10)
    assert math.isinf(least_cost([late], 8, {"m": STATED}, bank=False, violations=0))


def test_overheads_tighten_the_bound_and_a_lookup_must_pay() -> None:
    job = TraceJob("a", 0, "m", 68, 1, deadline_s=10, bank_factor=0.5)
    assert bound([job], 8, {"m": STATED}, bank=True).unavoidable == 0
    assert bound([job], 8, {"m": STATED}, bank=True, overheads=Overheads(start_s=4)).unavoidable == 0
    assert bound([job], 8, {"m": STATED}, bank=True, overheads=Overheads(start_s=4, lookup_s=2)).unavoidable == 1
    assert bound([job], 8, {"m": STATED}, bank=False, overheads=Overheads(start_s=0.1)).unavoidable == 1
    assert bound([job], 8, {"m": STATED}, bank=True, overheads=Overheads(lookup_s=50)).work_gpu_s == pytest.approx(68)


def test_finer_grids_and_fewer_gpus_raise_the_bound() -> None:
    jobs = generate(Workload(gpus=8, load=1.1, seed=4, burst_jobs=12, slo=SloMultiple.parse("0.5")))
    coarse, fine = (
        bound(jobs, 8, dict.fromkeys({j.llm for j in jobs}, STATED), bank=False, slots=s) for s in (10, 120)
    )
    assert 0 < coarse.violations_lp < fine.violations_lp
    assert bound(jobs, 6, dict.fromkeys({j.llm for j in jobs}, STATED), bank=False).violations > fine.violations


def test_best_effort_alone_needs_no_program() -> None:
    found = bound([TraceJob("a", 0, "m", 5, 2)], 1, {"m": STATED}, bank=False)
    assert (found.violations, found.with_deadline, found.work_gpu_s) == (0, 0, pytest.approx(10))


def test_what_cannot_be_bounded_is_refused() -> None:
    with pytest.raises(SpecError, match=r"no speed-up profile for 'm' \(known: x\)"):
        bound([TraceJob("a", 0, "m", 5, 2)], 1, {"x": STATED}, bank=False)
    with pytest.raises(SpecError, match="job 'a' needs 2 GPUs at least, but 1"):
        bound([TraceJob("a", 0, "m", 5, 2, min_gpus=2)], 1, {"m": STATED}, bank=False)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 3), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 4))
def test_hull_lies_on_or_above_the_curve_and_is_concave(gains: list[float], low: int, more: int) -> None:
    curve = [(k + 1, sum(gains[: k + 1]) / gains[0]) for k in range(len(gains))]
    hull = hull_of(curve, low, low + more)
    sizes, rates = [0.0, *hull.gpus], [0.0, *hull.rate]
    slopes = [(b - a) / (q - p) for p, q, a, b in zip(sizes, sizes[1:], rates, rates[1:], strict=False)]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(slopes))
    for k in range(low, low + more + 1):
        reach = (
            rates[-1]
            if k >= sizes[-1]
            else next(
                r + (k - p) * s for p, q, r, s in zip(sizes, sizes[1:], rates, slopes, strict=False) if p <= k <= q
            )
        )
        assert reach >= speedup_at(curve, k) - 1e-9
