"""Jobs of more GPUs than their profile tells of: planned at its largest gain, never an error."""

import math

import pytest

from prompttuner.policy import POLICIES, get
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase
from prompttuner.policy.estimate import estimate
from prompttuner.profiles import stated
from prompttuner.sim import SimOptions, simulate
from prompttuner.trace.job import TraceJob


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("wide_deadline", [20.0, 900.0, math.inf])
def test_jobs_that_need_more_gpus_than_the_profile_knows_are_planned_and_end(policy: str, wide_deadline: float) -> None:
    jobs = [
        TraceJob("wide", 0, "gpt2-base", 3000, 0.1, min_gpus=12, max_gpus=12, deadline_s=wide_deadline),
        TraceJob("narrow", 0, "gpt2-base", 500, 0.1, deadline_s=300),
        TraceJob("elastic", 1, "vicuna-7b", 500, 0.1, min_gpus=9, max_gpus=16),
    ]
    result = simulate(jobs, stated(["gpt2-base", "vicuna-7b"]), get(policy), SimOptions(gpus=16))
    assert all(job.rejected or job.end_s < 5000 for job in result.jobs)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_job_that_was_given_many_gpus_by_hand_and_then_let_go_is_planned(make, policy: str) -> None:
    agents = [{"phase": AgentPhase.BUSY, "job": 0} for _ in range(12)]
    job = {"phase": JobPhase.RUNNING, "deadline": 400.0, "max_gpus": 16, "iters_mid": 900.0}
    snapshot = make([job, {"deadline": 60.0}], agents, gpus=16)
    guess = estimate(snapshot)
    assert guess.seconds(0, 0, 12) == pytest.approx(900 / 6.8) and guess.top[0] == 8
    get(policy).plan(snapshot)
