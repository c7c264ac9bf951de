"""The generator and the windows: seeded, at the asked load, as bursty as asked."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.errors import SpecError
from prompttuner.trace.generate import Workload, generate
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple, with_slo
from prompttuner.trace.window import cut, load_of, starts_by_work, to_load


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), gpus=st.sampled_from([8, 32, 96]), load=st.floats(0.2, 1.2))
def test_generated_load_is_met_exactly_and_repeats(seed: int, gpus: int, load: float) -> None:
    workload = Workload(seed=seed, gpus=gpus, load=load)
    jobs = generate(workload)
    assert load_of(jobs, gpus) == pytest.approx(load)
    assert jobs == generate(workload)
    assert all(0 <= job.submit_s <= workload.length_s and 0.1 <= job.bank_factor <= 1 for job in jobs)
    assert jobs == sorted(jobs, key=lambda job: job.submit_s)


def test_seeds_differ() -> None:
    assert generate(Workload(seed=1)) != generate(Workload(seed=2))


def _dispersion(burst_jobs: float) -> float:
    """Variance over mean of the arrivals in 10-minute bins."""
    counts = []
    for seed in range(12):
        jobs = generate(Workload(seed=seed, burst_jobs=burst_jobs, gpus=64, burst_spread_s=10))
        counts.append(np.histogram([job.submit_s for job in jobs], bins=12, range=(0, 7200))[0])
    pooled = np.concatenate(counts)
    return float(pooled.var() / pooled.mean())


def test_burst_size_sets_the_dispersion() -> None:
    assert 0.6 < _dispersion(1.0) < 1.5  # Poisson: 1
    assert 9 < _dispersion(8.0) < 21  # Neyman-Scott: 2 x 8 - 1 = 15


def test_bank_factors_have_the_asked_median() -> None:
    factors = [job.bank_factor for seed in range(8) for job in generate(Workload(seed=seed, tasks=40))]
    assert 0.45 < float(np.median(factors)) < 0.55


def test_deadlines_follow_the_multiple() -> None:
    jobs = generate(Workload(slo=SloMultiple.parse("U(0.5, 1.5)")))
    ratios = np.array([(job.deadline_s - job.submit_s) / job.work_s for job in jobs])
    assert ratios.min() >= 0.5 and ratios.max() <= 1.5 and ratios.std() > 0.2
    fixed = with_slo(jobs, SloMultiple.parse("1.5"))
    assert all(job.deadline_s == pytest.approx(job.submit_s + 1.5 * job.work_s) for job in fixed)


@pytest.mark.parametrize("text", ["0", "-1", "U(2,1)", "fast", "U(0,1)", "nan", ""])
def test_wrong_multiples_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="SLO multiple"):
        SloMultiple.parse(text)


def test_multiple_prints_as_it_is_written() -> None:
    assert [str(SloMultiple.parse(text)) for text in ("1", "u(0.5,1.5)")] == ["1", "U(0.5,1.5)"]


@pytest.mark.parametrize("change", [{"gpus": 0}, {"load": 0.0}, {"burst_jobs": 0.5}, {"work_min_s": 900.0}])
def test_impossible_workloads_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="workload"):
        Workload(**change)


@pytest.mark.parametrize("load", [0.1, 0.5, 2.0])
def test_window_reaches_a_load_by_whole_jobs(load: float) -> None:
    jobs = generate(Workload(gpus=32, load=0.7, seed=3))
    window = to_load(jobs, 32, load, seed=1)
    biggest = max(job.work_s for job in jobs)
    assert load - biggest / (32 * 7200) <= load_of(window, 32) <= load
    assert len({job.id for job in window}) == len(window)
    assert {job.work_s for job in window} <= {job.work_s for job in jobs}


def test_cut_counts_from_the_window_start() -> None:
    jobs = [TraceJob(str(k), 1000.0 * k, "m", 10, 1, deadline_s=1000.0 * k + 50) for k in range(5)]
    window = cut([*jobs, TraceJob("b", 2500, "m", 1, 1)], 2000, 1500)
    assert [(job.id, job.submit_s, job.deadline_s) for job in window] == [
        ("2", 0, 50),
        ("3", 1000, 1050),
        ("b", 500, math.inf),
    ]


def test_windows_are_picked_by_their_work() -> None:
    jobs = [TraceJob(f"{k}-{i}", k * 100 + i, "m", 10.0 * (k + 1), 1) for k in range(5) for i in range(10)]
    assert starts_by_work(jobs, 100, (0.0, 0.5, 1.0)) == [0, 200, 400]
    with pytest.raises(SpecError, match="only 5 windows"):
        starts_by_work(jobs, 100, [0.5] * 6)
