"""Rows as policies see them: what was told to go, and since when a job has had its members."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prompttuner.controller.plan.iterations import Remaining
from prompttuner.controller.plan.pools import Pool
from prompttuner.controller.plan.snapshot import SnapshotInputs, build_snapshot
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase, SiteLimits, Snapshot
from prompttuner.profiles import stated

POOL = Pool("gpt2-base-1", "p", "gpt2-base", "auto", None, (), ())


def job(**given: Any) -> Any:
    row = {
        "id": "j", "pool": POOL.key, "state": "running", "submitted_at": 0.0, "deadline_at": None, "priority": 0,
        "min_gpus": 1, "max_gpus": 4, "scale_to": None, "members": [], "iters_per_s": None, "lookup_done": True,
        "step": 0, "lookup": None, "first_step_at": 21.0, "state_since": 20.0, "best_effort": False,
        "on_miss": "continue", "generation": 1,
    }  # fmt: skip
    return SimpleNamespace(**{**row, **given})


def allocation(**given: Any) -> Any:
    row = {"uuid": "a", "pool": POOL.key, "state": "warm", "job_id": None, "reserved_for": None, "gpus": 1}
    return SimpleNamespace(**{**row, "state_since": 5.0, "ends_at": None, "drain": False, **given})


def snapshot(jobs: list[Any], allocations: list[Any]) -> Snapshot:
    remaining = {one.id: Remaining(10.0, 20.0, "test") for one in jobs}
    profiles = {POOL.key: stated(["gpt2-base"])["gpt2-base"]}
    return build_snapshot(jobs, allocations, SnapshotInputs(100.0, 1.0, SiteLimits(4), [POOL], profiles, remaining))


@pytest.mark.parametrize("state", ["intent", "pending", "starting", "warm", "switching", "draining"])
def test_an_agent_that_was_told_to_go_takes_no_job_wherever_it_stands(state: str) -> None:
    told, not_told = (snapshot([], [allocation(state=state, drain=drain)]).agents for drain in (True, False))
    assert told.phase[0] == AgentPhase.DRAINING
    assert (not_told.phase[0] == AgentPhase.DRAINING) == (state == "draining")


def test_one_with_a_job_is_busy_until_the_job_leaves_it() -> None:
    busy = allocation(state="busy", job_id="j", drain=True)
    assert snapshot([job(members=["a"])], [busy]).agents.phase[0] == AgentPhase.BUSY


def test_a_running_job_begins_anew_with_each_member_that_joins_it() -> None:
    members = [
        allocation(uuid="a", state="busy", job_id="j", state_since=20.0),
        allocation(uuid="b", state="busy", job_id="j", state_since=60.0),
    ]
    running = snapshot([job(members=["a", "b"])], members).jobs
    assert (running.phase[0], running.phase_since[0]) == (JobPhase.RUNNING, 60.0)
    starting = snapshot([job(members=["a", "b"], first_step_at=None)], members).jobs
    assert (starting.phase[0], starting.phase_since[0]) == (JobPhase.STARTING, 20.0)
    assert snapshot([job(state="queued")], members[:0]).jobs.phase_since[0] == 20.0


def test_a_job_that_never_ran_waits_since_its_submission_however_late_its_request_was_taken() -> None:
    assert snapshot([job(state="queued", generation=0, submitted_at=3.0)], []).jobs.phase_since[0] == 3.0
