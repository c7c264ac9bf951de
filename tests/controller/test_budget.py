"""``max_gpu_hours`` on a fake site: what runs ends, what cannot be paid waits, and nothing is spent beyond."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from lab import Lab, scratch_root

from prompttuner.db.queries import allocations
from prompttuner.states import JobState

BUDGET_H = 0.05


@pytest.mark.parametrize("policy", ["prompttuner", "elasticflow"])
def test_a_budget_stops_growth_before_it_is_exceeded(policy: str, tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder,
        Lab(Path(folder), policy, local={"slots": 3}, max_gpu_hours=BUDGET_H, idle_limit_s=20.0) as lab,
    ):
        jobs = [lab.submit(ita=200, max_iterations=200, deadline_s=None, max_gpus=1) for _ in range(7)]
        lab.run(200, every=2.0)
        states = [lab.job(job).state for job in jobs]
        assert set(states) == {JobState.DONE, JobState.QUEUED}, states
        assert lab.site.busy_gpus == 0, "nothing idles on a spent budget"
        assert 0 <= lab.controller.limits.hours_left(BUDGET_H) < BUDGET_H / 2
        waiting = next(job for job in jobs if lab.job(job).state == JobState.QUEUED)
        assert "max_gpu_hours" in lab.job(waiting).note
        lab.settings = lab.settings.model_copy(update={"max_gpu_hours": 10.0})
        lab.crash()
        lab.run(240, every=2.0)
        assert {lab.job(job).state for job in jobs} == {JobState.DONE}


def test_a_budget_does_not_fill_up_again_as_old_rows_are_forgotten(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder,
        Lab(Path(folder), max_gpu_hours=10.0, idle_limit_s=20.0) as lab,
    ):
        for _ in range(2):
            lab.submit(ita=50)
        lab.run(120)
        assert lab.site.running() == []
        left = lab.controller.limits.hours_left(10.0)
        assert 0 < left < 10.0
        lab.pass_days(40)
        assert lab.store.query(allocations.find) == []
        assert lab.controller.limits.hours_left(10.0) == pytest.approx(left, abs=1e-9)
