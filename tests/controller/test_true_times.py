"""Allocations are charged from Slurm's start to Slurm's end, however late the controller hears of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, scratch_root

from prompttuner.db.queries import allocations
from prompttuner.db.tables.models import Allocation
from prompttuner.states import AllocationState, JobState

WEEKEND_S = 60 * 3600.0


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder,
        Lab(Path(folder), backend="slurm", max_gpus=4, idle_limit_s=20.0, slurm={"walltime_s": 7200}) as lab,
    ):
        yield lab


def first(lab: Lab) -> Allocation:
    """The first allocation that was asked for."""
    row: Allocation = lab.store.query(allocations.find)[-1]
    return row


def away(lab: Lab, seconds: float) -> None:
    """The site goes on, nobody ticks; then a new controller takes over after a weekend."""
    for _ in range(int(seconds)):
        lab.site.step(1.0)
    lab.site.time += WEEKEND_S
    lab.crash()


def test_after_a_weekend_slurms_own_end_counts(lab: Lab) -> None:
    job = lab.submit(ita=50, max_gpus=1)
    lab.run(8)
    away(lab, 60)
    (native,) = lab.site.allocations.values()
    lab.tick()
    row = first(lab)
    assert (row.state, row.end_source) == (AllocationState.ENDED, "manager")
    assert (row.started_at, row.ended_at) == (native.started_at, native.ends_at)
    assert lab.job(job).gpu_seconds < 100


def test_without_accounting_the_farewell_tells_the_end(lab: Lab) -> None:
    lab.site.accounting = False
    lab.submit(ita=50, max_gpus=1)
    lab.run(8)
    away(lab, 60)
    (native,) = lab.site.allocations.values()
    lab.tick()
    row = first(lab)
    assert row.end_source == "farewell"
    assert row.ended_at == pytest.approx(native.ends_at, abs=2.0)


def test_a_proven_end_that_nobody_tells_the_time_of_is_the_last_beat(lab: Lab) -> None:
    lab.site.accounting = False
    lab.submit(ita=50, max_gpus=1)
    lab.run(8)
    (native,) = lab.site.allocations.values()
    killed_at = lab.site.time
    lab.site.kill(native)
    away(lab, 5)
    status = native.request.folder / "status.json"
    os.utime(status, (killed_at, killed_at))
    lab.tick()
    row = first(lab)
    assert (row.state, row.end_source) == (AllocationState.ENDED, "beat")
    assert row.ended_at == pytest.approx(killed_at, abs=2.0)


def test_an_end_by_farewell_is_put_right_once_slurm_tells_it_also_by_another_controller(lab: Lab) -> None:
    lab.submit(ita=20, max_gpus=1)
    lab.run(12)
    (native,) = lab.site.allocations.values()
    lab.site.away = lab.site.accounting_away = True
    for _ in range(60):
        lab.site.step(1.0)
    (ended_at, started_at) = (native.ends_at, native.started_at)
    assert ended_at is not None
    lab.tick()
    row = first(lab)
    assert row.end_source == "farewell"
    lab.site.away = lab.site.accounting_away = False
    lab.crash()
    lab.site.time += 700  # sources that failed are left alone for a while
    lab.tick()
    row = first(lab)
    assert row.end_source == "manager"
    assert (row.started_at, row.ended_at) == (started_at, ended_at)


def test_an_allocation_that_came_and_went_unseen_is_charged_all_the_same(lab: Lab) -> None:
    job = lab.submit(ita=50, max_gpus=1)
    lab.tick()
    away(lab, 80)
    (native,) = lab.site.allocations.values()
    assert native.started_at is not None and native.ends_at is not None
    lab.tick()
    row = first(lab)
    assert (row.started_at, row.ended_at) == (native.started_at, native.ends_at)
    assert lab.job(job).state in {JobState.QUEUED, JobState.RUNNING}


def test_silence_proves_nothing(lab: Lab) -> None:
    lab.submit(ita=900, max_iterations=1000, max_gpus=1)
    lab.run(12)
    lab.site.lose_node(lab.site.running()[0])
    lab.run(30)
    assert first(lab).ended_at is None
