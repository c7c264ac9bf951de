"""The rules of the prompttuner policy, each on a hand-made snapshot."""

import numpy as np
import pytest

from prompttuner.policy import get
from prompttuner.policy.contract.plan import Assign, Demote, Release, Request, Restore, SwitchModel
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase


def of(plan, kind):
    return [action for action in plan.actions if isinstance(action, kind)]


def busy(job, pool=0):
    return {"phase": AgentPhase.BUSY, "job": job, "pool": pool}


def running(**given):
    return {"phase": JobPhase.RUNNING, "phase_since": -100.0, **given}


def test_fewest_warm_gpus_that_meet_the_deadline(make):
    plan = get("prompttuner").plan(make([{"deadline": 40.0}], [{} for _ in range(8)]))
    (assign,) = of(plan, Assign)
    assert len(assign.agents) == 3  # 1 s + 100 s / 2.825; two would need 52 s
    assert "3 GPUs with llm0" in str(assign.reason)


def test_cold_start_only_where_it_still_meets_the_deadline(make):
    soon, later = (get("prompttuner").plan(make([{"deadline": d}], [])) for d in (30.0, 200.0))
    assert len(of(later, Request)) == 1
    # 23 s of cold start and 15 s of tuning on eight GPUs do not fit into 30 s
    assert "does not fit" in str(soon.notes["j0"]) or of(soon, Request)


def test_waits_for_a_warm_gpu_that_comes_free_in_time(make):
    jobs = [running(iters_mid=10.0, deadline=900.0), {"deadline": 900.0}]
    waits = get("prompttuner").plan(make(jobs, [busy(0)]))
    asks = get("prompttuner", delay=False).plan(make(jobs, [busy(0)]))
    assert of(waits, Request) == [] and "waits 10 s" in str(waits.notes["j1"])
    assert len(of(asks, Request)) == 1


def test_a_late_running_job_grows(make):
    plan = get("prompttuner").plan(make([running(deadline=70.0)], [busy(0), {}, {}]))
    (assign,) = of(plan, Assign)
    assert assign.job == "j0" and len(assign.agents) == 2
    assert not of(get("prompttuner", resize=False).plan(make([running(deadline=70.0)], [busy(0), {}])), Assign)


def test_a_job_with_more_than_it_needs_gives_back_for_another(make):
    jobs = [running(deadline=900.0), {"deadline": 120.0}]
    plan = get("prompttuner").plan(make(jobs, [busy(0), busy(0)], gpus=2))
    (assign,) = of(plan, Assign)
    assert assign.job == "j0" and len(assign.agents) == 1
    assert "j1" in str(assign.reason)


def test_best_effort_gives_way(make):
    jobs = [running(), {"deadline": 120.0}]
    plan = get("prompttuner").plan(make(jobs, [busy(0)], gpus=1))
    (assign,) = of(plan, Assign)
    assert (assign.job, assign.agents) == ("j0", ())


def test_a_job_with_slack_lends_its_gpu(make):
    jobs = [running(deadline=900.0), {"deadline": 120.0}]
    plan = get("prompttuner").plan(make(jobs, [busy(0)], gpus=1))
    (assign,) = of(plan, Assign)
    assert (assign.job, assign.agents) == ("j0", ()) and "slack" in str(assign.reason)
    kept = get("prompttuner", rescue=False).plan(make(jobs, [busy(0)], gpus=1))
    assert not of(kept, Assign)


def test_a_job_due_earlier_does_not_lend(make):
    jobs = [running(deadline=300.0, iters_mid=50.0), {"deadline": 400.0, "iters_mid": 375.0}]
    assert not of(get("prompttuner").plan(make(jobs, [busy(0)], gpus=1)), Assign)


def test_a_running_job_gives_way_where_that_keeps_more_deadlines(make):
    jobs = [running(deadline=420.0, iters_mid=400.0), *({"deadline": 400.0 + i, "iters_mid": 100.0} for i in range(3))]
    plan = get("prompttuner").plan(make(jobs, [busy(0)], gpus=1))
    (assign,) = of(plan, Assign)
    assert (assign.job, assign.agents) == ("j0", ()) and "not all deadlines" in str(assign.reason)


def test_who_was_paused_a_moment_ago_rests(make):
    paused = {"deadline": 900.0, "submit": -50.0, "phase_since": 98.0}
    plan = get("prompttuner").plan(make([paused], [{}], now=100.0))
    assert not of(plan, Assign) and plan.wake_at == 104.0
    assert of(get("prompttuner").plan(make([paused], [{}], now=104.0)), Assign)


def test_jobs_behind_those_that_are_planned_are_told_how_many_are_before_them(make):
    jobs = [running(deadline=900.0), *({"deadline": 5000.0 + i} for i in range(100))]
    plan = get("prompttuner", rescue=False).plan(make(jobs, [busy(0)], gpus=1))
    assert str(plan.notes["j100"]) == "waits behind 99 jobs, due earlier" and len(dict(plan.notes)) == 101


def test_hopeless_jobs_turn_best_effort_and_regain_their_deadline(make):
    plan = get("prompttuner").plan(make([{"deadline": 5.0}], [{} for _ in range(8)]))
    assert [a.job for a in of(plan, Demote)] == ["j0"] and len(of(plan, Assign)[0].agents) == 1
    back = get("prompttuner").plan(make([running(deadline=300.0, best_effort=True)], [busy(0)]))
    assert [a.job for a in of(back, Restore)] == ["j0"]


def test_a_deadline_that_has_passed_is_said_to_have_passed(make):
    plan = get("prompttuner").plan(make([{"deadline": -9.0}], [{}]))
    assert "passed 9 s ago" in str(of(plan, Demote)[0].reason)


def test_overload_puts_the_largest_last(make):
    jobs = [{"deadline": 150.0}, {"deadline": 151.0, "iters_mid": 120.0}, {"deadline": 152.0, "iters_mid": 40.0}]
    plan = get("prompttuner").plan(make(jobs, [{}], gpus=1))
    assert [a.job for a in of(plan, Assign)] == ["j0"]
    assert "more jobs late" in str(plan.notes["j1"]) and "waits" in str(plan.notes["j2"])


def test_switches_the_model_of_an_idle_agent(make):
    snapshot = make([{"pool": 1, "deadline": 300.0}], [{"pool": 0}], pools=2, gpus=1)
    (switch,) = of(get("prompttuner").plan(snapshot), SwitchModel)
    assert switch.pool == 1 and switch.job == "j0"
    assert not of(get("prompttuner", switch=False).plan(snapshot), SwitchModel)


def test_lookup_is_skipped_when_slack_is_short(make):
    job = {"bank_factor_mid": 0.85, "bank_factor_hi": 1.0, "max_gpus": 1}
    roomy, short = (get("prompttuner").plan(make([{**job, "deadline": d}], [{}])) for d in (500.0, 102.2))
    assert of(roomy, Assign)[0].lookup_s == 8.0
    assert of(short, Assign)[0].lookup_s == 0.0


def test_idle_agents_are_released_at_the_break_even(make):
    policy = get("prompttuner", forecast=False, keep=1.0)
    before, after = (policy.plan(make([], [{}], now=t)) for t in (19.0, 20.0))
    assert before.actions == [] and before.wake_at == 20.0
    assert len(of(after, Release)) == 1
    assert len(of(get("prompttuner", warm_pool=False).plan(make([], [{}], now=1.0)), Release)) == 1


def test_forecast_keeps_longer_while_jobs_arrive_fast(make):
    snapshot = make([], [{}], now=25.0)
    snapshot.arrivals.times[0] = np.linspace(0.0, 24.0, 8)
    assert not of(get("prompttuner").plan(snapshot), Release)
    assert of(get("prompttuner", forecast=False).plan(snapshot), Release)


def test_idle_gpus_speed_up_a_running_job(make):
    plan = get("prompttuner").plan(make([running(deadline=900.0)], [busy(0), {}]))
    (assign,) = of(plan, Assign)
    assert len(assign.agents) == 2 and "idle GPU" in str(assign.reason)
    assert not of(get("prompttuner", boost=False).plan(make([running(deadline=900.0)], [busy(0), {}])), Assign)


def test_running_jobs_have_notes_with_numbers(make):
    plan = get("prompttuner").plan(make([running(deadline=900.0)], [busy(0)]))
    assert "keeps 1 GPU:" in str(plan.notes["j0"]) and "100 s" in str(plan.notes["j0"])
    with pytest.raises(KeyError):
        plan.notes["nobody"]


@pytest.mark.parametrize("name", ["prompttuner", "edf"])
def test_a_running_job_is_brought_within_its_limits(make, name):
    grow = make([running(min_gpus=3, max_gpus=3)], [busy(0), {}, {}])
    assert [len(a.agents) for a in of(get(name).plan(grow), Assign)] == [3]
    shrink = make([running(max_gpus=1)], [busy(0), busy(0)])
    assert [a.agents for a in of(get(name).plan(shrink), Assign)] == [("a0",)]
    ask = get(name).plan(make([running(min_gpus=3, max_gpus=3)], [busy(0), {}]))
    assert len(of(ask, Request)) == 1 and not of(ask, Assign) and "needs 3" in str(ask.notes["j0"])
