"""ElasticFlow as a policy: every job ends or is rejected, admission as released and repaired, plans are pure."""

import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.policy.baselines.elasticflow import ElasticFlow, ElasticFlowFixed
from prompttuner.policy.contract.plan import Plan, Reject
from prompttuner.policy.contract.snapshot import Snapshot
from prompttuner.policy.registry import get
from prompttuner.profiles.load import stated
from prompttuner.sim.options import SimOptions, SimResult
from prompttuner.sim.run import simulate
from prompttuner.trace.generate import Workload, generate
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple

SLO = SloMultiple.parse("U(0.5,1.5)")


def run(jobs: list[TraceJob], policy: ElasticFlow, gpus: int = 8) -> SimResult:
    return simulate(jobs, stated({job.llm for job in jobs}), policy, SimOptions(gpus=gpus))


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 1000), load=st.floats(0.3, 1.5), released=st.booleans(), slo=st.sampled_from([SLO, None]))
def test_every_job_ends_or_is_rejected(seed: int, load: float, released: bool, slo: SloMultiple | None) -> None:
    jobs = generate(Workload(gpus=8, load=load, length_s=1200, seed=seed, slo=slo))
    result = run(jobs, ElasticFlow() if released else ElasticFlowFixed())
    assert len(result.jobs) == len(jobs)
    for outcome in result.jobs:
        assert outcome.rejected == math.isinf(outcome.end_s)
        assert not (outcome.rejected and math.isinf(outcome.deadline_s))
    assert max(busy + starting + idle for _, busy, starting, idle in result.usage) <= 8


@pytest.mark.parametrize("policy", [ElasticFlow(), ElasticFlowFixed()])
def test_the_same_snapshot_gives_the_same_plan_and_is_left_alone(policy: ElasticFlow) -> None:
    class Twice:
        name = "twice"

        def plan(self, snapshot: Snapshot) -> Plan:
            before = copy.deepcopy(snapshot.jobs)
            first, second = policy.plan(snapshot), policy.plan(snapshot)
            assert first.actions == second.actions and first.wake_at == second.wake_at
            assert all(str(action.reason) for action in first.actions)
            assert (before.deadline == snapshot.jobs.deadline).all()
            return second

    jobs = generate(Workload(gpus=8, load=0.8, length_s=900, seed=5, slo=SLO))
    assert len(simulate(jobs, stated({j.llm for j in jobs}), Twice(), SimOptions(gpus=8)).jobs) == len(jobs)


def burst() -> list[TraceJob]:
    """One job that can be met and one that cannot, submitted in the same slot."""
    return [
        TraceJob("can", 1.0, "gpt2-base", 1000, 0.1, deadline_s=400),
        TraceJob("cannot", 2.0, "gpt2-base", 100_000, 0.1, deadline_s=60),
    ]


def test_as_released_one_hopeless_arrival_takes_the_others_of_its_slot_with_it() -> None:
    released = {j.id: j.rejected for j in run(burst(), ElasticFlow()).jobs}
    repaired = {j.id: j.rejected for j in run(burst(), ElasticFlowFixed()).jobs}
    assert released == {"can": True, "cannot": True}
    assert repaired == {"can": False, "cannot": True}


def test_start_up_is_counted_only_when_repaired() -> None:
    """40 s of work at best, 50 s to the deadline, and a cold start of more than 10 s."""
    job = TraceJob("tight", 0.0, "gpt2-large", 40 * 6.8 / 0.35, 0.35, deadline_s=50)
    assert not run([job], ElasticFlow()).jobs[0].rejected
    assert run([job], ElasticFlowFixed()).jobs[0].rejected


def test_repairs_help() -> None:
    jobs = generate(Workload(gpus=16, load=0.8, seed=3, slo=SLO, burst_jobs=12))
    assert run(jobs, ElasticFlowFixed(), 16).violations < run(jobs, ElasticFlow(), 16).violations


def test_both_are_found_by_name() -> None:
    assert get("elasticflow").name == "elasticflow"
    assert get("elasticflow-fixed", slot_s=30.0).slot_s == 30.0


@pytest.mark.parametrize("policy", [ElasticFlow(), ElasticFlowFixed()])
def test_a_job_that_was_admitted_and_lost_its_gpus_is_not_judged_again(make, policy: ElasticFlow) -> None:
    hopeless = {"submit": 18.5, "deadline": 25.0, "iters_mid": 900.0}
    plan = policy.plan(make([{**hopeless, "phase_since": 18.5}, {**hopeless, "phase_since": 24.0}], now=29.0))
    assert plan.actions == []  # within a slot
    plan = policy.plan(make([{**hopeless, "phase_since": 18.5}], now=20.0))
    assert [action.job for action in plan.actions if isinstance(action, Reject)] == ["j0"]
    lost = {**hopeless, "submit": 19.5, "phase_since": 24.0}
    assert not [a for a in policy.plan(make([lost], now=30.0)).actions if isinstance(a, Reject)]
