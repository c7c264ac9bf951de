"""ElasticFlow's planning: capacity is never exceeded, plans do the work they promise, shares are minimal."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.policy.baselines import elasticflow_admit as admission_module
from prompttuner.policy.baselines.elasticflow_admit import Admission
from prompttuner.policy.baselines.elasticflow_share import EfJob, Free, align, left_over, place, place_all

RATES = (1.0, 1.9, 3.4, 5.6)
SLOT = 10.0


def job(name: str, left: float, deadline: float, sizes: int = 4) -> EfJob:
    return EfJob(name, left, deadline, tuple(2**k for k in range(sizes)), RATES[:sizes])


@st.composite
def workloads(draw: st.DrawFn) -> tuple[list[EfJob], int, float]:
    now = draw(st.sampled_from([0.0, 37.0, 120.5]))
    count = draw(st.integers(1, 9))
    jobs = [
        job(str(k), draw(st.floats(0.01, 900)), now + draw(st.floats(-50, 400)), draw(st.integers(1, 4)))
        for k in range(count)
    ]
    return jobs, draw(st.sampled_from([8, 12, 16])), now


def held(jobs: list[EfJob], at: float) -> int:
    total = 0
    for planned in jobs:
        plan = planned.placement
        assert plan is not None
        sizes = [gpus for begin, gpus in plan.segments if begin <= at]
        total += sizes[-1] if sizes and at < plan.end else 0
    return total


def work_done(planned: EfJob) -> float:
    plan = planned.placement
    assert plan is not None
    ends = [*(begin for begin, _ in plan.segments[1:]), plan.end]
    rate = {0: 0.0, **dict(zip(planned.levels, planned.rates, strict=True))}
    return sum((end - begin) * rate[gpus] for (begin, gpus), end in zip(plan.segments, ends, strict=True))


def check(jobs: list[EfJob], free: Free, gpus: int, now: float) -> None:
    moments = sorted({now, *free.times, *(b for j in jobs for b, _ in j.placement.segments)})
    for at in moments:
        in_use = held(jobs, at)
        left = [value for begin, value in zip(free.times, free.values, strict=True) if begin <= at][-1]
        assert in_use + left == gpus
        assert left >= 0
    for planned in jobs:
        assert work_done(planned) >= planned.left * (1 - 1e-9)
        assert planned.placement.late == (planned.placement.real_end > planned.deadline)
        assert {gpus for _, gpus in planned.placement.segments} <= {0, *planned.levels}


@settings(deadline=None, max_examples=150)
@given(case=workloads(), put_off=st.sampled_from([math.inf, 1e6]))
def test_plans_fit_the_cluster_and_do_the_work(case, put_off: float) -> None:
    jobs, gpus, now = case
    free, late = place_all(jobs, gpus, now, SLOT, put_off)
    check(jobs, free, gpus, now)
    if put_off == math.inf:
        assert {j.id for j in late} == {j.id for j in jobs if j.placement.late}


@settings(deadline=None, max_examples=150)
@given(case=workloads(), diminishing=st.booleans(), lazy=st.booleans())
def test_left_over_gpus_only_raise_jobs_and_leave_none_that_fit(case, diminishing: bool, lazy: bool) -> None:
    jobs, gpus, now = case
    free, _ = place_all(jobs, gpus, now, SLOT)
    before = [j.gpus for j in jobs]
    free = left_over(jobs, free, gpus, now=now, slot=SLOT, diminishing=diminishing, lazy=lazy)
    assert all(after.gpus >= was for after, was in zip(jobs, before, strict=True))
    assert free.values[0] == gpus - sum(j.gpus for j in jobs) >= 0
    if not lazy:
        steps = [j.levels[j.levels.index(j.gpus) + 1] - j.gpus if j.gpus else 1 for j in jobs if j.gpus < j.levels[-1]]
        assert all(step > free.values[0] for step in steps)


@settings(deadline=None, max_examples=150)
@given(case=workloads(), old=st.integers(0, 5), every=st.sampled_from([1, 3, 64]))
def test_arrivals_are_admitted_as_if_all_were_planned_anew_for_each(case, old: int, every: int) -> None:
    jobs, gpus, now = case
    admitted, arrivals = jobs[:old], jobs[old:]
    was, admission_module.EVERY = admission_module.EVERY, every
    try:
        found = Admission(admitted, gpus, now, SLOT).add_each(arrivals)
    finally:
        admission_module.EVERY = was
    wanted = []
    for arrival in arrivals:
        wanted.append(not place_all([*admitted, arrival], gpus, now, SLOT)[1])
        admitted = [*admitted, arrival] if wanted[-1] else admitted
    assert found == wanted


def test_a_group_is_admitted_as_a_whole_or_not_at_all() -> None:
    good, bad = job("good", 100, 400), job("bad", 9000, 60)
    assert not Admission([], 8, 0.0, SLOT).add([good, bad])
    assert Admission([], 8, 0.0, SLOT).add([good])
    assert Admission([bad], 8, 0.0, SLOT).full
    assert not Admission([bad], 8, 0.0, SLOT).add([good])


def test_share_is_the_smallest_size_that_meets_the_deadline() -> None:
    free = Free([0.0], [16])
    assert place(job("a", 100, 100), free, 0, SLOT).segments == ((0.0, 1),)
    assert place(job("a", 101, 100), free, 0, SLOT).segments == ((0.0, 2),)
    assert place(job("a", 341, 100), free, 0, SLOT).segments == ((0.0, 8),)
    hopeless = place(job("a", 561, 100), free, 0, SLOT)
    assert hopeless.late and hopeless.segments[0] == (0.0, 8)


def test_before_the_stretch_that_needs_it_a_job_runs_one_size_below() -> None:
    """GPUs are scarce until 40."""
    plan = place(job("a", 300, 100), Free([0.0, 40.0], [4, 16]), 0, SLOT)
    assert plan.segments == ((0.0, 4), (40.0, 4))
    wider = place(job("a", 330, 100), Free([0.0, 20.0, 40.0], [8, 7, 16]), 0, SLOT)
    assert wider.segments == ((0.0, 4), (20.0, 4), (40.0, 4)) and not wider.late
    widest = place(job("a", 440, 100), Free([0.0, 40.0], [4, 16]), 0, SLOT)
    assert widest.segments == ((0.0, 4), (40.0, 8)) and not widest.late


def test_jobs_without_gpus_are_raised_first() -> None:
    jobs = [job("runs", 200, 300), job("waits", 30, 1000)]
    free, _ = place_all(jobs, 2, 0.0, SLOT)
    jobs[1].gpus = 0
    left_over(jobs, free, 2, now=0.0, slot=SLOT, diminishing=False)
    assert jobs[1].gpus >= 1


def test_step_function_gives_back_what_a_plan_took() -> None:
    free = Free([0.0, 50.0], [10, 16])
    plan = place(job("a", 300, 100), free, 0, SLOT)
    assert free.with_plan(plan, -1).with_plan(plan, +1) == free


@pytest.mark.parametrize(("time", "edge"), [(0, 0), (1, 10), (10, 10), (-1, 0), (-10, -10)])
def test_align_rounds_up(time: float, edge: float) -> None:
    assert align(0.0, time, SLOT) == edge
