"""Agents that are warmed before their jobs arrive: where it pays, how many, for how long, and never in a loop."""

from dataclasses import replace

import numpy as np
import pytest

from prompttuner.policy import get
from prompttuner.policy.budget import within_budget
from prompttuner.policy.contract.plan import Release, Request
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase
from prompttuner.policy.prompttuner.prewarming import next_burst
from prompttuner.profiles import stated
from prompttuner.sim import SimOptions, simulate
from prompttuner.trace.generate import LlmMix, Workload, generate
from prompttuner.trace.slo import SloMultiple

COLD_S = 23.0
"""Of the fixture's pool: 2 s in the queue, 20 s of start-up, a tick."""
HOURLY = [0.0, 3600.0, 7200.0, 10800.0]


def came(snapshot, begins, jobs=2, work=60.0, slack=30.0, gap=2.0):
    """Bursts of ``jobs`` at these times; each job would need 3 warm GPUs, and cannot be met from cold."""
    times = np.array([begin + i * gap for begin in begins for i in range(jobs)])
    arrivals = snapshot.arrivals
    arrivals.times[0], arrivals.work[0] = times, np.full(len(times), work)
    arrivals.slack[0] = np.full(len(times), slack)
    return snapshot


def of(plan, kind):
    return [action for action in plan.actions if isinstance(action, kind)]


def plan_at(make, now, agents=(), jobs=(), rules=None, begins=HOURLY, **limits):
    return get("prompttuner", **(rules or {})).plan(came(make(jobs, agents, now=now, **limits), begins))


def test_asks_for_a_burst_just_in_time_to_be_warm(make):
    before = plan_at(make, 14000.0)
    assert before.actions == [] and before.wake_at == pytest.approx(14400.0 - COLD_S)
    due = plan_at(make, before.wake_at)
    asked = of(due, Request)
    assert len(asked) == 6 and all(r.job is None and r.pool == 0 for r in asked)  # two jobs of three GPUs each
    assert "the last 4 bursts came every 3600 s" in str(asked[0].reason)


def test_those_on_their_way_or_warm_are_not_asked_for_again_and_are_kept(make):
    coming = [{"phase": AgentPhase.REQUESTED, "since": 14377.0, "ready_at": 14500.0}] * 4
    idle = [{"since": 14000.0}] * 2
    plan = plan_at(make, 14380.0, [*coming, *idle])
    assert plan.actions == []
    assert 14400.0 < plan.wake_at < 14500.0


def test_those_that_were_warm_early_stay(make):
    at = 14400.0 - 1.5 * COLD_S
    assert len(of(plan_at(make, at, [{"since": 14000.0}] * 8), Release)) == 2
    assert not of(plan_at(make, at, [{"since": 14000.0}]), Request)
    assert len(of(plan_at(make, at - COLD_S, [{"since": 14000.0}] * 8), Release)) == 8


def test_more_than_are_needed_go(make):
    assert len(of(plan_at(make, 14380.0, [{"since": 14000.0}] * 8), Release)) == 2


def test_given_back_and_not_asked_for_again_if_nobody_comes(make):
    over = plan_at(make, 14400.0 + 30.0, [{"since": 14395.0}] * 6)
    assert len(of(over, Release)) == 6 and not of(over, Request)
    for later in (14500.0, 18000.0 - COLD_S, 18000.0):
        assert plan_at(make, later).actions == []


@pytest.mark.parametrize(
    "begins",
    [
        [0.0, 3600.0, 7200.0],  # too few
        [0.0, 2000.0, 9000.0, 12000.0, 13000.0],  # not regular
        [0.0, 3600.0, 7300.0, 10800.0, 14550.0],  # regular, yet an agent would wait for longer than a cold start
        [1000.0] * 6,  # one burst
    ],
)
def test_what_past_bursts_do_not_foretell(begins):
    assert next_burst(np.array(begins), COLD_S) is None


def test_windows_open_at_the_least_time_between_bursts_and_close_at_the_greatest():
    burst = next_burst(np.array([0.0, 3600.0, 3610.0, 7190.0, 10800.0, 14395.0]), COLD_S)
    assert (burst.head - 14395.0, burst.tail - 14395.0) == (3590.0, 3610.0)
    assert burst.idle_s == pytest.approx(14395.0 / 4 - 3590.0) and len(burst.begins) == 5


@pytest.mark.parametrize(("work", "slack"), [(60.0, np.inf), (60.0, 600.0), (900.0, 30.0), (np.nan, 30.0)])
def test_not_where_a_cold_start_would_do_as_well_or_nothing_would_do(make, work, slack):
    snapshot = came(make(now=14390.0), HOURLY, work=work, slack=slack)
    assert get("prompttuner").plan(snapshot).actions == []


def test_not_where_nothing_is_known_of_past_jobs_but_their_times(make):
    snapshot = came(make(now=14390.0), HOURLY)
    snapshot.arrivals.work, snapshot.arrivals.slack = [], []
    assert get("prompttuner").plan(snapshot).actions == []


def test_only_as_many_as_the_site_allows(make):
    assert len(of(plan_at(make, 14390.0, gpus=4), Request)) == 4
    assert len(of(plan_at(make, 14390.0, requests_now=1), Request)) == 1
    for forbidden in ({"warm_pool": False}, {"prewarm": False}, {"requests_now": 0}, {"gpu_hours_left": 0.0}):
        assert plan_at(make, 14390.0, **forbidden).actions == []
    for rule in ("prewarm", "forecast", "warm_pool"):
        assert plan_at(make, 14390.0, rules={rule: False}).actions == []


def test_jobs_that_wait_now_come_first(make):
    waiting = {"deadline": 14390.0 + 40.0, "submit": 14300.0, "iters_mid": 60.0, "min_gpus": 8}
    full = [{"phase": AgentPhase.BUSY, "job": 1}] * 4
    running = {"phase": JobPhase.RUNNING, "deadline": 14500.0, "min_gpus": 4, "max_gpus": 4, "phase_since": 14000.0}
    plan = plan_at(make, 14390.0, full, [waiting, running])
    assert not [request for request in of(plan, Request) if request.job is None]


def test_the_budget_drops_what_it_cannot_pay_without_giving_idle_agents_back(make):
    snapshot = came(make([], [{"since": 14389.0}], now=14390.0, gpu_hours_left=0.4), HOURLY)
    plan = get("prompttuner").plan(snapshot)
    assert len(of(plan, Request)) == 5
    kept = within_budget(snapshot, plan)
    # 1440 GPU-seconds: 599 for the idle one, 620 for each new one
    assert len(of(kept, Request)) == 1 and not of(kept, Release)


def test_cron_ticks_ask_a_period_earlier_and_only_where_that_pays(make):
    rare = replace(came(make(now=14390.0, profile={"queue_s": 100.0}), HOURLY, slack=60.0), next_plan_s=60.0)
    early = get("prompttuner").plan(replace(rare, now=14000.0)).wake_at
    assert early == pytest.approx(14400.0 - 121.0 - 59.0)
    assert get("prompttuner").plan(replace(came(make(now=14390.0), HOURLY), next_plan_s=60.0)).actions == []


def regular(every_s):
    return generate(
        Workload(gpus=16, load=0.08, length_s=14400, every_s=every_s, burst_spread_s=5.0, work_median_s=60.0,
                 work_max_s=200.0, llms=(LlmMix("gpt2-large", 1.0, 0.35),), slo=SloMultiple.parse("1.0"), seed=3)
    )  # fmt: skip


def test_saves_deadlines_of_regular_bursts_at_little_cost():
    jobs, profiles, site = regular(1200.0), stated(["gpt2-large"]), SimOptions(gpus=16)
    on, off = (simulate(jobs, profiles, get("prompttuner", prewarm=p), site) for p in (True, False))
    assert on.violations < 0.8 * off.violations
    assert on.cost_s < 1.05 * off.cost_s


def test_a_stream_that_ends_costs_one_window():
    """After the last burst one more window opens, and none after it: a late job keeps the site running."""
    jobs = regular(1200.0)
    last = replace(jobs[-1], id="late", submit_s=40000.0, deadline_s=50000.0)
    profiles, site = stated(["gpt2-large"]), SimOptions(gpus=16)
    policy = get("prompttuner")
    before, after = (simulate(some, profiles, policy, site) for some in (jobs, [*jobs, last]))
    assert not [row for row in after.usage if 16000.0 < row[0] < 39000.0 and sum(row[1:])]
    assert before.allocations < after.allocations <= before.allocations + site.gpus + 1
