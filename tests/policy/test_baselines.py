"""sbatch and infless on hand-made snapshots."""

import numpy as np
import pytest

from prompttuner.policy import get
from prompttuner.policy.contract.plan import Assign, Release, Request
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase


def of(plan, kind):
    return [action for action in plan.actions if isinstance(action, kind)]


def test_sbatch_queues_first_come_first_served_and_backfills(make):
    held = [{"phase": AgentPhase.BUSY, "job": 0}, {"phase": AgentPhase.BUSY, "job": 0}]
    jobs = [
        {"phase": JobPhase.RUNNING, "iters_mid": 390.0},  # ends in 200 s on two GPUs
        {"submit": 1.0, "min_gpus": 3},
        {"submit": 2.0, "iters_mid": 1000.0},  # would delay job 1
        {"submit": 3.0, "iters_mid": 50.0},  # ends before job 1 can start
    ]
    plan = get("sbatch").plan(make(jobs, held, gpus=3, now=5.0))
    assert [a.job for a in of(plan, Request)] == ["j3"]


def test_sbatch_starts_with_all_its_gpus_and_keeps_nothing(make):
    half = make([{}], [{"job": 0}, {"job": 0, "phase": AgentPhase.STARTING}])
    full = make([{}], [{"job": 0}, {"job": 0}, {}])
    assert not of(get("sbatch").plan(half), Assign)
    assert [a.agents for a in of(get("sbatch").plan(full), Assign)] == [("a0", "a1")]
    assert [a.agent for a in of(get("sbatch").plan(full), Release)] == ["a2"]


def test_sbatch_starts_a_backfilled_job_though_the_first_of_the_queue_waits(make):
    held = [{"phase": AgentPhase.BUSY, "job": 0}, {"job": 2}]
    jobs = [{"phase": JobPhase.RUNNING}, {"submit": 1.0, "min_gpus": 2}, {"submit": 2.0}]
    plan = get("sbatch").plan(make(jobs, held, gpus=2, now=5.0))
    assert [(a.job, a.agents) for a in of(plan, Assign)] == [("j2", ("a1",))]


def test_sbatch_never_waits_for_more_gpus_than_it_may_hold(make):
    hurried = {"iters_mid": 100.0, "deadline": 60.0}
    assert len(of(get("sbatch").plan(make([hurried])), Request)) == 4
    assert len(of(get("sbatch").plan(make([hurried], allocations=2)), Request)) == 2


def test_infless_counts_the_cold_start_into_the_size(make):
    warm = get("infless").plan(make([{"deadline": 110.0}], [{}]))
    cold = get("infless").plan(make([{"deadline": 110.0}], []))
    assert [len(a.agents) for a in of(warm, Assign)] == [1]
    assert len(of(cold, Request)) == 2


def test_infless_keeps_alive_for_a_fixed_time(make):
    policy = get("infless", keep_s=35.0)
    assert policy.plan(make([], [{}], now=34.0)).actions == []
    assert len(of(policy.plan(make([], [{}], now=35.0)), Release)) == 1


def test_infless_with_histograms_keeps_for_the_tail_of_the_idle_times(make):
    policy = get("infless", lsth=True)
    now = 100_000.0
    snapshot = make([], [{"since": now - 300.0}, {"since": now - 100.0}], now=now)
    assert len(of(policy.plan(snapshot), Release)) == 2  # nothing is known yet: the fixed keep-alive
    last_day = now - 50_000.0 + np.arange(6) * 400.0
    snapshot.arrivals.times[0] = last_day  # long-term 400 s, short-term unknown (35 s): half of each
    assert [a.agent for a in of(policy.plan(snapshot), Release)] == ["a0"]
    last_hour = now - 600.0 + np.arange(6) * 100.0
    snapshot.arrivals.times[0] = last_hour  # both 100 s
    plan = policy.plan(snapshot)
    assert [a.agent for a in of(plan, Release)] == ["a0", "a1"]


def test_infless_with_histograms_stays_within_the_idle_limit(make):
    snapshot = make([], [{"since": 0.0}], now=70.0, idle_limit_s=60.0)
    snapshot.arrivals.times[0] = np.arange(6) * 10.0
    assert len(of(get("infless", lsth=True).plan(snapshot), Release)) == 1


def test_infless_serves_in_order_of_submission(make):
    plan = get("infless").plan(
        make([{"submit": 2.0, "deadline": 300.0}, {"submit": 1.0, "deadline": 900.0}], [{}], gpus=1)
    )
    assert [a.job for a in of(plan, Assign)] == ["j1"]


HURRIED = {"bank_factor_mid": 0.5, "bank_factor_hi": 0.9}
"""100 s of work: on eight GPUs 22.2 s with a lookup at the P90, 15.7 s without."""


@pytest.mark.parametrize(("skip", "members", "lookup_s"), [(True, 7, 0.0), (False, 1, 8.0)])
def test_edf_skips_a_lookup_that_would_cost_the_deadline(make, skip: bool, members: int, lookup_s: float) -> None:
    snapshot = make([{**HURRIED, "deadline": 18.0}], [{} for _ in range(8)])
    (assign,) = [a for a in get("edf", skip=skip).plan(snapshot).actions if isinstance(a, Assign)]
    assert (len(assign.agents), assign.lookup_s) == (members, lookup_s)
    roomy = make([{**HURRIED, "deadline": 300.0}], [{} for _ in range(8)])
    (assign,) = get("edf", skip=skip).plan(roomy).actions
    assert assign.lookup_s == 8.0, "where there is time it looks up"


@pytest.mark.parametrize(("skip", "lookup_s"), [(True, 0.0), (False, 8.0)])
def test_sbatch_skips_a_lookup_that_would_cost_the_deadline(make, skip: bool, lookup_s: float) -> None:
    policy, job = get("sbatch", skip=skip), {**HURRIED, "deadline": 41.0}
    asked = policy.plan(make([job], [])).actions
    assert len(asked) == (8 if skip else 1), "without it no size meets the deadline"
    (assign,) = policy.plan(make([job], [{"job": 0} for _ in range(8)], now=22.0)).actions
    assert assign.lookup_s == lookup_s
