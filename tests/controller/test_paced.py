"""Paced jobs: the controller plans on what their spec states, whatever it has seen of other jobs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lab import Lab

from prompttuner.controller.plan import planner
from prompttuner.controller.plan.paced_jobs import stated_bank, stated_remaining, stated_speedup, stated_step_s
from prompttuner.protocol.spec import ResolvedSpec

PACED = {"step_s": 0.25, "speedup": [1.0, 1.9, 2.7], "iterations": 40, "looked_up": 10, "lookup_s": 3.0}


def job(step: int = 0, lookup_done: bool = False, budget_s: float = 0.0) -> Any:
    return SimpleNamespace(step=step, lookup_done=lookup_done, lookup=None, lookup_budget_s=budget_s)


def spec(paced: dict[str, Any] | None) -> ResolvedSpec:
    target = {"metric": "loss", "op": "<=", "value": 0.1}
    return ResolvedSpec.expect({"model": "m", "target": target, "max_iterations": 9, "batch_size": 8, "paced": paced})


def test_what_is_left_is_known_exactly() -> None:
    left = stated_remaining(job(step=12), spec(PACED))
    assert left is not None and (left.mid, left.hi) == (28, 28) and "paced" in left.source
    done = stated_remaining(job(step=41), spec(PACED))
    assert done is not None and (done.mid, done.hi) == (0, 0)


def test_a_lookup_that_was_done_shortens_it_one_that_was_skipped_does_not() -> None:
    for lookup_done, budget_s, left in ((True, 3.0, 6), (True, 0.0, 36), (False, 3.0, 36)):
        found = stated_remaining(job(4, lookup_done, budget_s), spec(PACED))
        assert found is not None and found.mid == left


def test_nothing_is_stated_of_a_job_that_tunes() -> None:
    assert stated_remaining(job(), spec(None)) is None and stated_speedup(spec(None)) is None
    assert stated_step_s({"a": spec(None), "b": spec(PACED)}) == {"b": 0.25}


def test_a_lookup_pays_where_the_spec_says_so_whatever_the_own_bank_holds(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stated_bank(spec(PACED)) and not stated_bank(spec({**PACED, "looked_up": 40}))
    assert not stated_bank(spec({**PACED, "looked_up": None})) and not stated_bank(spec(None))
    paced = lab.submit(ita=50, paced=PACED, initial_prompt="auto")
    seen = snapshots(monkeypatch)
    lab.tick()
    assert seen[0].jobs.bank_factor_mid[seen[0].jobs.id.index(paced)] < 1


def snapshots(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What policies will have seen."""
    seen: list[Any] = []
    real = planner.build_snapshot

    def keep(*args: Any) -> Any:
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(planner, "build_snapshot", keep)
    return seen


def test_the_policy_sees_iterations_step_time_and_speed_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    tunes = lab.submit(ita=50)
    paced = lab.submit(ita=50, paced=PACED)
    seen = snapshots(monkeypatch)
    lab.tick()
    jobs, pools = seen[0].jobs, seen[0].pools
    row, other = jobs.id.index(paced), jobs.id.index(tunes)
    assert (jobs.step_s[row], jobs.iters_mid[row], jobs.iters_hi[row]) == (0.25, 40, 40)
    assert jobs.iters_hi[other] > jobs.iters_mid[other]
    assert pools[jobs.pool[row]].speedup == ((1, 1.0), (2, 1.9), (3, 2.7))
