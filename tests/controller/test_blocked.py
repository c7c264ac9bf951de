"""What Slurm will not start is not counted on: its reason is kept and told, and no GPU waits warm for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, scratch_root

from prompttuner.db.queries import allocations, events
from prompttuner.db.tables.models import Allocation
from prompttuner.slurm.reasons import Prospect, in_words, prospect_of
from prompttuner.states import ALLOCATION_ENDED, AllocationState, JobState


@pytest.fixture(params=["prompttuner", "edf"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder,
        Lab(
            Path(folder), request.param, backend="slurm", max_gpus=4, idle_limit_s=60.0, prewarm=False,
            slurm={"walltime_s": 7200},
        ) as lab,
    ):  # fmt: skip
        yield lab


def waiting(lab: Lab) -> list[Allocation]:
    rows = lab.store.query(allocations.find)
    return [row for row in rows if row.state in {AllocationState.INTENT, AllocationState.PENDING}]


@pytest.mark.parametrize(
    ("reason", "prospect"),
    [
        ("Priority", Prospect.QUEUE), ("Resources", Prospect.QUEUE), ("", Prospect.QUEUE),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", Prospect.QUEUE), ("BeginTime", Prospect.QUEUE),
        ("NoSuchReasonYet", Prospect.QUEUE), ("Dependency", Prospect.QUEUE), ("MaxAge", Prospect.QUEUE),
        ("QOSMaxGRESPerUser", Prospect.LIMIT), ("AssocGrpGRES", Prospect.LIMIT), ("MaxGRESPerAccount", Prospect.LIMIT),
        ("QOSMaxJobsPerUserLimit", Prospect.LIMIT), ("AssocGrpJobsLimit", Prospect.LIMIT),
        ("QOSGrpGRES", Prospect.LIMIT), ("AssocMaxJobsLimit", Prospect.LIMIT), ("MaxJobsPerAccount", Prospect.LIMIT),
        ("AssocGrpGRESMinutes", Prospect.LIMIT), ("MaxGRESPerAccount, x", Prospect.LIMIT),
        ("PartitionTimeLimit", Prospect.NEVER), ("DependencyNeverSatisfied", Prospect.NEVER),
        ("QOSMaxGRESPerJob", Prospect.NEVER), ("QOSMinGRES", Prospect.NEVER), ("BadConstraints", Prospect.NEVER),
        ("QOSMaxWallDurationPerJobLimit", Prospect.NEVER), ("InvalidAccount", Prospect.NEVER),
        ("JobHeldUser", Prospect.HELD), ("JobHeldAdmin", Prospect.HELD), ("(JobHeldUser)", Prospect.HELD),
    ],
)  # fmt: skip
def test_reasons_say_what_may_be_expected(reason: str, prospect: Prospect) -> None:
    assert prospect_of(reason) is prospect
    assert in_words(reason).startswith(reason)
    assert (in_words(reason) == reason) == (prospect is Prospect.QUEUE)


def test_the_first_gpu_does_not_wait_warm_for_a_second_that_cannot_come(lab: Lab) -> None:
    lab.site.limit_gpus = 1
    job = lab.submit(ita=50, min_gpus=2, max_gpus=2, deadline_s=None)
    lab.run(30)
    assert lab.job(job).state == JobState.QUEUED
    assert "QOSMaxGRESPerUser" in lab.job(job).note
    assert "Slurm gives 1" in lab.job(job).note
    lab.run(900, every=5.0)
    assert lab.site.busy_gpus == 0, "nothing is held for it"
    assert waiting(lab) == [], "nothing waits in Slurm's queue for it"
    assert len(lab.site.submitted) <= 3
    kinds = [row.kind for row in lab.store.query(events.latest)]
    assert "allocation.blocked" in kinds


def test_a_job_that_needs_no_more_than_the_limit_runs_while_another_waits(lab: Lab) -> None:
    lab.site.limit_gpus = 1
    lab.submit(ita=50, min_gpus=2, max_gpus=2, deadline_s=None)
    lab.run(30)
    small = lab.submit(ita=50, max_gpus=2, deadline_s=None)
    lab.run(120)
    assert lab.job(small).state == JobState.DONE


def test_a_limit_is_tried_again_after_an_hour_and_a_lifted_one_no_longer_hinders(lab: Lab) -> None:
    lab.site.limit_gpus = 1
    job = lab.submit(ita=50, min_gpus=2, max_gpus=2, deadline_s=None)
    lab.run(200, every=5.0)
    lab.crash()  # what was learned outlives the controller
    lab.run(100, every=5.0)
    before = len(lab.site.submitted)
    lab.site.limit_gpus = None
    lab.site.time += 3600
    lab.run(200)
    assert lab.job(job).state == JobState.DONE
    assert len(lab.site.submitted) > before


def test_what_can_never_start_is_told_and_not_asked_for_again(lab: Lab) -> None:
    lab.site.never = "PartitionTimeLimit"
    job = lab.submit(ita=50, max_gpus=1, deadline_s=None)
    lab.run(300, every=5.0)
    assert "PartitionTimeLimit" in lab.job(job).note
    assert "slurm.walltime_s" in lab.job(job).note
    assert len(lab.site.submitted) == 1
    (row,) = waiting(lab)
    assert row.reason == "PartitionTimeLimit"
    lab.site.never = ""
    lab.run(100)
    assert lab.job(job).state == JobState.DONE
    assert all(row.reason == "" for row in lab.store.query(allocations.find) if row.state in ALLOCATION_ENDED)
