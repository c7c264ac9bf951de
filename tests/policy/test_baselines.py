"""sbatch and infless on hand-made snapshots."""

from prompttuner.policy import get
from prompttuner.policy.plan import Assign, Release, Request
from prompttuner.policy.snapshot import AgentPhase, JobPhase


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


def test_infless_counts_the_cold_start_into_the_size(make):
    warm = get("infless").plan(make([{"deadline": 110.0}], [{}]))
    cold = get("infless").plan(make([{"deadline": 110.0}], []))
    assert [len(a.agents) for a in of(warm, Assign)] == [1]
    assert len(of(cold, Request)) == 2


def test_infless_keeps_alive_for_a_fixed_time(make):
    policy = get("infless", keep_s=35.0)
    assert policy.plan(make([], [{}], now=34.0)).actions == []
    assert len(of(policy.plan(make([], [{}], now=35.0)), Release)) == 1


def test_infless_serves_in_order_of_submission(make):
    plan = get("infless").plan(
        make([{"submit": 2.0, "deadline": 300.0}, {"submit": 1.0, "deadline": 900.0}], [{}], gpus=1)
    )
    assert [a.job for a in of(plan, Assign)] == ["j1"]
