"""The edf policy on hand-made snapshots."""

import pytest

from prompttuner.errors import ConfigError
from prompttuner.policy import get
from prompttuner.policy.contract.plan import Assign, Demote, Release, Request, Stop, SwitchModel
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase


def kinds(plan):
    return [type(a).__name__ for a in plan.actions]


def test_earlier_deadline_gets_the_only_warm_agent(make):
    plan = get("edf").plan(make([{"deadline": 900.0}, {"deadline": 500.0}], [{}], gpus=1))
    assert [a.job for a in plan.actions if isinstance(a, Assign)] == ["j1"]
    assert "j0" in plan.notes and "waits" in str(plan.notes["j0"])


def test_fewest_gpus_that_meet_the_deadline(make):
    plan = get("edf").plan(make([{"deadline": 40.0}], [{} for _ in range(8)]))
    (assign,) = [a for a in plan.actions if isinstance(a, Assign)]
    assert len(assign.agents) == 3  # 1 s + 100 s / 2.825 = 36.4 s; two need 52.3 s
    assert "3 GPUs" in str(assign.reason)


def test_requests_what_is_missing_within_the_limit(make):
    plan = get("edf").plan(make([{"deadline": 60.0}], [{}], gpus=2))
    (request,) = plan.actions
    assert isinstance(request, Request) and request.job == "j0"


def test_paused_requests_are_respected(make):
    assert kinds(get("edf").plan(make([{}], [], requests_now=0))) == []


def test_hopeless_job_is_told_so_and_runs_on_the_least(make):
    plan = get("edf").plan(make([{"deadline": 5.0}], [{} for _ in range(8)]))
    assert kinds(plan) == ["Demote", "Assign"]
    assert isinstance(plan.actions[0], Demote) and len(plan.actions[1].agents) == 1


def test_switches_an_idle_agent_of_another_llm_when_the_limit_is_reached(make):
    plan = get("edf").plan(make([{"pool": 1}], [{"pool": 0}], pools=2, gpus=1))
    (switch,) = plan.actions
    assert isinstance(switch, SwitchModel) and switch.pool == 1


def test_idle_agent_is_kept_then_released(make):
    policy = get("edf", keep_s=60.0)
    early, late = policy.plan(make([], [{}], now=50.0)), policy.plan(make([], [{}], now=60.0))
    assert early.actions == [] and early.wake_at == 60.0
    assert isinstance(late.actions[0], Release)


def test_without_a_warm_pool_idle_agents_go_at_once(make):
    plan = get("edf").plan(make([], [{}], now=1.0, warm_pool=False))
    assert kinds(plan) == ["Release"]


def test_a_queued_request_nobody_needs_is_withdrawn(make):
    plan = get("edf").plan(make([], [{"phase": AgentPhase.REQUESTED, "ready_at": 30.0}]))
    assert kinds(plan) == ["Release"]


def test_held_jobs_get_nothing_and_stop_on_miss_stops(make):
    jobs = [{"phase": JobPhase.HELD}, {"deadline": 10.0, "stop_on_miss": True, "phase": JobPhase.RUNNING}]
    plan = get("edf").plan(make(jobs, [{}, {"phase": AgentPhase.BUSY, "job": 1}], now=11.0))
    assert [a for a in plan.actions if isinstance(a, Assign)] == []
    assert [a.job for a in plan.actions if isinstance(a, Stop)] == ["j1"]


def test_lookup_is_used_only_where_it_pays(make):
    job = {"bank_factor_mid": 0.5, "bank_factor_hi": 0.8}
    long, short = ({**job, "iters_mid": 100.0}, {**job, "iters_mid": 10.0})
    times = [a.lookup_s for j in (long, short) for a in get("edf").plan(make([j], [{}])).actions]
    assert times == [8.0, 0.0]
    (assign,) = get("edf", bank=False).plan(make([long], [{}])).actions
    assert assign.lookup_s == 0.0


def test_unknown_names_and_switches_are_told(make):
    with pytest.raises(ConfigError, match="edf"):
        get("nope")
    with pytest.raises(ConfigError, match="keep_s"):
        get("edf", nope=1)


def test_best_effort_comes_after_deadlines(make):
    plan = get("edf").plan(make([{"submit": 0.0}, {"submit": 5.0, "deadline": 500.0}], [{}], gpus=1))
    assert [a.job for a in plan.actions] == ["j1"]
