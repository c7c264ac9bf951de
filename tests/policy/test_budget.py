"""Whatever the policy, a budget of GPU-hours stops growth before it is exceeded, and says so."""

import math

from prompttuner.policy.budget import within_budget
from prompttuner.policy.contract.plan import Assign, Demote, Plan, Release, Request, SwitchModel
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase

HOUR = 3600.0
RUN_S = 101.0
"""One job of 100 iterations of a second, and a second to begin."""


def kinds(plan):
    return [type(action).__name__ for action in plan.actions]


def test_without_a_budget_the_plan_is_left_alone(make):
    plan = Plan([Assign("j0", ("a0",), "go")])
    assert within_budget(make([{}], [{}]), plan) is plan


def test_jobs_are_begun_as_long_as_the_budget_pays_for_their_predicted_ends(make):
    plan = Plan([Assign(f"j{i}", (f"a{i}",), "go") for i in range(3)])
    kept = within_budget(make([{}] * 3, [{}] * 3, gpu_hours_left=2.5 * RUN_S / HOUR), plan)
    assert [action.job for action in kept.actions if isinstance(action, Assign)] == ["j0", "j1"]
    assert "0.07 GPU-hours left" in str(kept.notes["j2"]) and "needs 0.03" in str(kept.notes["j2"])
    assert [action.agent for action in kept.actions if isinstance(action, Release)] == ["a2"]


def test_what_runs_is_set_aside_first_and_goes_on_even_beyond(make):
    running = {"phase": JobPhase.RUNNING}
    busy = {"phase": AgentPhase.BUSY, "job": 0}
    plan = Plan([Assign("j1", ("a1",), "go")])
    for left_s, begun in ((1.9 * RUN_S, False), (2.1 * RUN_S, True), (0.0, False)):
        kept = within_budget(make([running, {}], [busy, {}], gpu_hours_left=left_s / HOUR), plan)
        assert ("Assign" in kinds(kept)) is begun
        assert "a0" not in [action.agent for action in kept.actions if isinstance(action, Release)]


def test_growth_pays_only_for_what_it_costs_more(make):
    running = {"phase": JobPhase.RUNNING}
    busy = {"phase": AgentPhase.BUSY, "job": 0}
    plan = Plan([Assign("j0", ("a0", "a1"), "grow")])
    two_s = 2 * 100 / 1.95
    for left_s, grown in ((two_s - 1, False), (two_s + 1, True)):
        kept = within_budget(make([running], [busy, {}], gpu_hours_left=left_s / HOUR), plan)
        assert ("Assign" in kinds(kept)) is grown
        assert ("j0" in kept.notes) is not grown


def test_shrinking_and_words_cost_nothing(make):
    running = {"phase": JobPhase.RUNNING}
    busy = {"phase": AgentPhase.BUSY, "job": 0}
    plan = Plan([Assign("j0", ("a0",), "shrink"), Demote("j0", "late"), Release("a2", "idle")])
    kept = within_budget(make([running], [busy, busy, {}], gpu_hours_left=0.0), plan)
    assert kept.actions == plan.actions


def test_new_allocations_pay_for_their_start_and_their_job(make):
    plan = Plan([Request(0, "cold start", "j0")])
    for left_s, asked in ((20 + RUN_S - 1, False), (20 + RUN_S + 1, True)):
        assert bool(within_budget(make([{}], [], gpu_hours_left=left_s / HOUR), plan).actions) is asked
    plan = Plan([SwitchModel("a0", 0, "switch", "j0")])
    for left_s, asked in ((15 + RUN_S - 1, "Release"), (15 + RUN_S + 1, "SwitchModel")):
        assert kinds(within_budget(make([{}], [{}], gpu_hours_left=left_s / HOUR), plan)) == [asked]


def test_what_was_asked_for_is_not_paid_twice_when_it_comes(make):
    coming = {"phase": AgentPhase.STARTING, "job": 0, "ready_at": 10.0}
    plan = Plan([Request(0, "one more", "j1")])
    budget_s = 10 + RUN_S + 20 + RUN_S
    for left_s, asked in ((budget_s - 1, False), (budget_s + 1, True)):
        assert bool(within_budget(make([{}, {}], [coming], gpu_hours_left=left_s / HOUR), plan).actions) is asked
    arrived = {"job": 0}
    plan = Plan([Assign("j0", ("a0",), "go")])
    assert kinds(within_budget(make([{}], [arrived], gpu_hours_left=(RUN_S + 1) / HOUR), plan)) == ["Assign"]


def test_idle_agents_whose_idle_limit_cannot_be_paid_are_given_back(make):
    for left_s, kept_warm in ((599.0, False), (601.0, True)):
        kept = within_budget(make([], [{}], idle_limit_s=600.0, gpu_hours_left=left_s / HOUR), Plan())
        assert (kept.actions == []) is kept_warm
    assert math.isinf(kept.wake_at)
