"""The bounds against a brute-force optimum over all schedules of whole GPUs in unit steps, on tiny cases."""

import itertools
import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.errors import SpecError
from prompttuner.sim.bound import Overheads, bound, least_cost
from prompttuner.sim.rates import hull_of, speedup_at
from prompttuner.trace.generate import Workload, generate
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple

STATED = ((1, 1.0), (2, 1.95), (4, 3.7), (8, 6.8))


@st.composite
def tiny_cases(draw: st.DrawFn) -> tuple[list[TraceJob], int, list[tuple[int, float]]]:
    gpus = draw(st.integers(1, 3))
    gains = draw(st.lists(st.floats(0, 1.4), min_size=2, max_size=2))  # falling, rising: concave or not
    speedup = [(1, 1.0), (2, 1.0 + gains[0]), (3, 1.0 + gains[0] + gains[1])]
    jobs = []
    for k in range(draw(st.integers(1, 3))):
        submit = draw(st.integers(0, 2))
        low = draw(st.integers(1, gpus))
        jobs.append(
            TraceJob(
                id=str(k),
                submit_s=submit,
                llm="m",
                iters=draw(st.floats(0.3, 5)),
                step_s=1,
                deadline_s=draw(st.integers(submit + 1, 5)),
                min_gpus=low,
                max_gpus=draw(st.integers(low, 3)),
                bank_factor=draw(st.floats(0.3, 1.2)),
            )
        )
    return jobs, gpus, speedup


def brute_force(
    jobs: list[TraceJob], gpus: int, speedup: list[tuple[int, float]], work: list[float]
) -> dict[frozenset[int], float]:
    """Least GPU-steps by which each subset of jobs is in time; subsets that cannot be are missing."""
    sizes = [[0, *range(job.min_gpus, min(job.max_gpus, gpus) + 1)] for job in jobs]

    @cache
    def cheapest(t: int, left: tuple[float, ...]) -> float:
        if all(rest <= 1e-9 for rest in left):
            return 0.0
        if any(rest > 1e-9 and t >= job.deadline_s for rest, job in zip(left, jobs, strict=True)):
            return math.inf
        open_sizes = [
            s if rest > 1e-9 and t >= job.submit_s else [0] for s, rest, job in zip(sizes, left, jobs, strict=True)
        ]
        best = math.inf
        for choice in itertools.product(*open_sizes):
            if sum(choice) <= gpus:
                after = tuple(
                    round(max(0.0, rest - (speedup_at(speedup, k) if k else 0.0)), 9)
                    for rest, k in zip(left, choice, strict=True)
                )
                best = min(best, _held(left, choice, speedup) + cheapest(t + 1, after))
        return best

    out = {}
    for chosen in itertools.product([False, True], repeat=len(jobs)):
        left = tuple(round(w, 9) if c else 0.0 for w, c in zip(work, chosen, strict=True))
        cost = cheapest(0, left)
        if math.isfinite(cost):
            out[frozenset(i for i, c in enumerate(chosen) if c)] = cost
    return out


def _held(left: tuple[float, ...], choice: tuple[int, ...], speedup: list[tuple[int, float]]) -> float:
    """GPU-seconds of one step; a job that ends within it gives its GPUs back at once."""
    return sum(k * min(1.0, rest / speedup_at(speedup, k)) for rest, k in zip(left, choice, strict=True) if k)


@settings(deadline=None, max_examples=120)
@given(case=tiny_cases(), bank=st.booleans(), slots=st.sampled_from([1, 2, 50]), mip_s=st.sampled_from([0.0, 2.0]))
def test_bounds_never_exceed_the_brute_force_optimum(case, bank: bool, slots: int, mip_s: float) -> None:
    jobs, gpus, speedup = case
    work = [job.work_s * (min(1.0, job.bank_factor) if bank else 1.0) for job in jobs]
    in_time = brute_force(jobs, gpus, speedup, work)
    optimum = len(jobs) - max(len(subset) for subset in in_time)
    found = bound(jobs, gpus, {"m": speedup}, bank=bank, slots=slots, mip_s=mip_s)
    assert found.unavoidable <= found.violations <= optimum

    least = [
        w * min(k / speedup_at(speedup, k) for k in range(job.min_gpus, min(job.max_gpus, gpus) + 1))
        for w, job in zip(work, jobs, strict=True)
    ]
    assert found.work_gpu_s == pytest.approx(sum(least))
    for allowed in range(len(jobs) + 1):
        costs = [
            cost + sum(least[i] for i in range(len(jobs)) if i not in subset)
            for subset, cost in in_time.items()
            if len(jobs) - len(subset) <= allowed
        ]
        optimal = min(costs, default=math.inf)
        floor = least_cost(jobs, gpus, {"m": speedup}, bank=bank, violations=allowed, slots=slots)
        assert floor <= optimal * (1 + 1e-6)
        assert floor >= found.work_gpu_s * (1 - 1e-9)


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
