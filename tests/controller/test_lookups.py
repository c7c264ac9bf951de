"""Which jobs are looked up, and for how long: the controller's decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prompttuner import profiles
from prompttuner.controller.plan.expectations import BANK_FACTOR, Outlook
from prompttuner.controller.plan.lookups import MOST_S, granted_s, with_lookups
from prompttuner.db.tables.models import Job
from prompttuner.policy.contract.plan import Assign, Plan

NOW = 1000.0
POOL = "cpu-x"


def outlook(*, banked: bool = True, measured: bool = False, lookup_s: float = 12.0) -> Outlook:
    label = next(iter(profiles.stated(["cpu"])))
    profile = replace(profiles.stated(["cpu"])[label], name=POOL, lookup_s=lookup_s)
    bank = {POOL: BANK_FACTOR} if banked else {}
    return Outlook([], {POOL: profile}, {}, bank, {}, {}, frozenset({POOL} if measured else ()))


def job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": "j1", "pool": POOL, "lookup_done": False, "step": 0, "first_step_at": None, "deadline_at": NOW + 600,
        "best_effort": False, "initial_prompt": "auto",
    }  # fmt: skip
    return Job(**(values | changes))


def test_a_new_llm_is_looked_up_although_the_guessed_times_say_that_it_would_not_pay() -> None:
    assert granted_s(job(), 0.0, outlook(), NOW) == 150
    assert granted_s(job(deadline_at=None), 0.0, outlook(), NOW) == MOST_S
    assert granted_s(job(best_effort=True), 0.0, outlook(), NOW) == MOST_S


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({}, {"banked": False}),
        ({}, {"measured": True}),
        ({"deadline_at": NOW + 40}, {}),
        ({"deadline_at": NOW - 1}, {}),
        ({"lookup_done": True}, {}),
        ({"step": 5}, {}),
        ({"first_step_at": NOW - 5}, {}),
    ],
    ids=["no entries", "measured pace", "no room", "missed", "looked up", "resumed", "running"],
)
def test_no_lookup_is_made_where_it_cannot_help(changes: dict[str, Any], given: dict[str, Any]) -> None:
    assert granted_s(job(**changes), 0.0, outlook(**given), NOW) == 0


def test_a_lookup_that_pays_is_granted_what_the_deadline_leaves_and_not_a_guess() -> None:
    assert granted_s(job(), 12.0, outlook(measured=True), NOW) == 150
    assert granted_s(job(deadline_at=NOW + 20), 12.0, outlook(measured=True), NOW) == 12


def test_a_user_may_insist() -> None:
    forced = {"initial_prompt": "bank"}
    assert granted_s(job(**forced), 0.0, outlook(banked=False, measured=True), NOW) == 150
    assert granted_s(job(**forced, deadline_at=NOW - 5), 0.0, outlook(measured=True), NOW) == MOST_S


def test_only_jobs_that_get_members_are_looked_up() -> None:
    pause, start = Assign("j1", (), "pause"), Assign("j1", ("a",), "go")
    plan = with_lookups(Plan([pause, start, Assign("gone", ("b",), "go")]), [job()], outlook(), NOW)
    assert [action.lookup_s for action in plan.actions if isinstance(action, Assign)] == [0, 150, 0]
