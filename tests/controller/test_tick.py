"""The live control loop on a fake site: jobs end right, agents are reused, faults lose nothing."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from lab import Lab, scratch_root

from prompttuner.db.queries import allocations, events
from prompttuner.files import read_json
from prompttuner.states import JobState


def test_a_job_is_tuned_and_its_result_promoted(lab: Lab) -> None:
    job_id = lab.submit(ita=50)
    lab.tick()
    lab.run(60)
    job = lab.job(job_id)
    assert (job.state, job.ita, job.step) == (JobState.DONE, 50, 50)
    assert read_json(lab.spool.job(job_id) / "result" / "result.json")["prompt"] == f"prompt of {job_id}"
    assert job.gpu_seconds > 0 and [n for _, n in job.history][-1] == 0


def test_a_warm_agent_serves_the_next_job_of_its_model(lab: Lab) -> None:
    first = lab.submit(ita=30)
    lab.tick()
    lab.run(40)
    second = lab.submit(ita=30)
    lab.run(20)
    assert {lab.job(first).state, lab.job(second).state} == {JobState.DONE}
    assert len(lab.site.submitted) == 1


def test_agents_end_at_the_idle_limit(lab: Lab) -> None:
    lab.submit(ita=10)
    lab.run(150)
    assert lab.site.busy_gpus == 0
    assert lab.store.query(allocations.load_live) == []


def test_a_job_that_cannot_reach_its_target_is_exhausted_and_keeps_its_best(lab: Lab) -> None:
    job_id = lab.submit(ita=10_000, max_iterations=100)
    lab.run(60)
    assert lab.job(job_id).state == JobState.EXHAUSTED
    assert (lab.spool.job(job_id) / "result").is_dir()
    assert lab.job(job_id).note == "max_iterations are used up and the target was not reached"


@pytest.mark.parametrize(
    ("kind", "values"),
    [("scale", {"members": "many"}), ("update", {"priority": ["high"]}), ("submit", {"spec": {"min_gpus": "some"}})],
)
def test_a_request_that_makes_no_sense_is_refused_and_stops_no_tick(lab: Lab, kind: str, values: dict) -> None:
    job_id = lab.submit(ita=30)
    lab.tick()
    told = lab.ask(kind, **{"job": "jother" if kind == "submit" else job_id, **values})
    assert not told["ok"] and "cannot be understood" in told["message"]
    lab.run(60)
    assert lab.job(job_id).state == JobState.DONE


def test_cancel_hold_and_release(lab: Lab) -> None:
    cancelled, held = lab.submit(ita=300), lab.submit(ita=150)
    lab.run(15)
    assert lab.ask("cancel", job=cancelled)["ok"]
    assert lab.ask("hold", job=held)["ok"]
    lab.run(30)
    assert (lab.job(cancelled).state, lab.job(held).state) == (JobState.CANCELLED, JobState.HELD)
    assert not lab.ask("cancel", job=cancelled)["ok"]
    assert lab.ask("release", job=held)["ok"]
    lab.run(60)
    assert lab.job(held).state == JobState.DONE


def test_a_preempted_job_goes_on_elsewhere_from_its_checkpoint(lab: Lab) -> None:
    job_id = lab.submit(ita=200, max_gpus=1)
    lab.run(25)
    step = lab.job(job_id).step
    assert step >= 20
    lab.site.preempt(lab.site.running()[0])
    lab.run(4)
    assert lab.job(job_id).state == JobState.QUEUED
    lab.run(60)
    job = lab.job(job_id)
    assert (job.state, job.ita) == (JobState.DONE, 200)
    assert len(lab.site.submitted) == 2


def test_a_crashed_worker_is_tried_again_but_not_for_ever(lab: Lab) -> None:
    job_id = lab.submit(ita=5000, max_iterations=5000, max_gpus=1)
    lab.run(12)
    for _ in range(5):
        for allocation in lab.site.running():
            if allocation.zygote is not None:
                allocation.zygote.crash()
        lab.run(5)
    job = lab.job(job_id)
    assert job.state == JobState.FAILED and "crashed 3 times" in (job.error or "")


def test_a_lost_answer_is_found_by_name_and_not_submitted_twice(lab: Lab) -> None:
    lab.site.lose_answers = 1
    job_id = lab.submit(ita=30)
    lab.run(60)
    assert lab.job(job_id).state == JobState.DONE
    assert len(lab.site.submitted) == len(set(lab.site.submitted)) == 1


def test_a_lost_submission_is_abandoned_and_its_uuid_never_used_again(lab: Lab) -> None:
    lab.site.lose_submissions = 1
    job_id = lab.submit(ita=30)
    lab.run(200)
    assert lab.job(job_id).state == JobState.DONE
    states = {row.uuid: row.state for row in lab.store.query(allocations.find)}
    abandoned = [uuid for uuid, state in states.items() if state == "abandoned"]
    assert len(abandoned) == 1 and abandoned[0] not in lab.site.admitted


@pytest.mark.parametrize("trouble", ["refuse", "lose_submissions"])
def test_a_burst_of_submissions_that_fail_ends_with_the_pause_and_not_with_the_last_one(
    tmp_path: Path, trouble: str
) -> None:
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder,
        Lab(Path(folder), local={"slots": 20}, max_submissions_per_minute=20) as lab,
    ):
        lab.site.gpus = 20
        setattr(lab.site, trouble, 100)
        for _ in range(10):
            lab.submit(ita=30, deadline_s=30.0, max_gpus=1)
        report = lab.tick()
        assert (len([a for a in report.actions if a.startswith("Request")]), report.submitted) == (10, 0)
        assert getattr(lab.site, trouble) == 95
        reasons = [row.end_reason for row in lab.store.query(allocations.find)]
        assert reasons.count("refused") == (10 if trouble == "refuse" else 5)
        assert any("paused for" in row.cause for row in lab.store.query(events.latest))


def test_slurm_away_declares_nothing_dead(lab: Lab) -> None:
    job_id = lab.submit(ita=200, max_gpus=1)
    lab.run(15)
    lab.site.away = True
    lab.run(20)
    assert lab.job(job_id).state == JobState.RUNNING
    lab.site.away = False
    lab.run(40)
    assert lab.job(job_id).state == JobState.DONE
    assert len(lab.site.submitted) == 1


@pytest.mark.parametrize("says", ["nothing", "nonsense"])
def test_a_squeue_that_prints_nothing_or_nonsense_declares_nothing_dead(lab: Lab, says: str) -> None:
    job_id = lab.submit(ita=200, max_gpus=1)
    lab.run(15)
    lab.site.squeue_says, lab.site.accounting_away = says, True
    lab.run(60)
    assert lab.job(job_id).state == JobState.DONE
    lab.run(15)
    assert len(lab.site.submitted) == 1
    assert [row.state for row in lab.store.query(allocations.find)] == ["warm"], "its agent is still counted on"


def test_a_lost_node_is_suspect_until_slurm_proves_it(lab: Lab) -> None:
    job_id = lab.submit(ita=600, max_iterations=1000, deadline_s=None, max_gpus=1)
    lab.run(15)
    notice = lab.site.lose_node(lab.site.running()[0])
    lab.run(90)
    assert lab.job(job_id).state == JobState.RUNNING
    assert any(e.kind == "agent_suspect" for e in lab.store.query(events.latest))
    notice()
    lab.run(200)
    assert lab.job(job_id).state == JobState.DONE


def test_a_new_controller_takes_over_where_the_old_one_was_cut_off(lab: Lab) -> None:
    job_id = lab.submit(ita=100)
    lab.run(10)
    lab.crash()
    lab.run(60)
    assert lab.job(job_id).state == JobState.DONE
    assert len(lab.site.submitted) == len(set(lab.site.submitted))


def test_a_running_job_ends_without_a_controller_and_its_result_waits(lab: Lab) -> None:
    job_id = lab.submit(ita=100, max_gpus=1)
    lab.run(12)
    for _ in range(60):
        lab.site.step(1.0)
    assert lab.job(job_id).state == JobState.RUNNING
    lab.tick()
    assert lab.job(job_id).state == JobState.DONE


def test_requests_are_applied_once_and_wrong_ones_answered(lab: Lab) -> None:
    job_id = lab.submit()
    lab.tick()
    assert lab.ask("update", job=job_id, priority=7)["ok"]
    assert lab.job(job_id).priority == 7
    reply = lab.ask("cancel", job="jnosuchjob1")
    assert not reply["ok"] and "no job" in reply["message"]
    assert not lab.ask("scale", job=job_id, members=99)["ok"]
    assert "may be held here" in lab.ask("scale", job=job_id, members=16)["message"], "it could never run"


def test_scaling_by_hand_grows_and_shrinks_a_running_job(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder,
        Lab(Path(folder), "prompttuner", local={"slots": 3}) as lab,
    ):
        job_id = lab.submit(ita=4000, max_iterations=5000, deadline_s=5000.0, max_gpus=1)
        lab.run(20)
        assert len(lab.job(job_id).members) == 1
        assert lab.ask("scale", job=job_id, members=3)["ok"]
        lab.run(30)
        assert len(lab.job(job_id).members) == 3
        assert lab.ask("scale", job=job_id, members=1)["ok"]
        lab.run(10)
        assert len(lab.job(job_id).members) == 1
        assert [int(n) for _, n in lab.job(job_id).history][-1] == 1


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_users_own_scancel_is_respected_and_said(tmp_path: Path, by_hand: bool) -> None:
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder,
        Lab(Path(folder), "prompttuner", local={"slots": 3}) as lab,
    ):
        job_id = lab.submit(ita=3000, max_iterations=5000, deadline_s=5000.0, max_gpus=2, min_gpus=1)
        assert lab.ask("scale", job=job_id, members=2)["ok"]
        lab.run(30)
        assert len(lab.job(job_id).members) == 2
        if not by_hand:
            assert lab.ask("scale", job=job_id, members=None)["ok"]
        lab.site.cancel([lab.site.running()[0].native_id])
        lab.run(60)
        job = lab.job(job_id)
        assert (job.state, len(job.members), job.max_gpus) == (JobState.RUNNING, 1, 1)
        said = [row for row in lab.store.query(events.latest) if row.kind == "allocation.scancelled"]
        assert len(said) == 1 and "not replaced" in said[0].cause
        lab.run(600, every=5.0)
        assert lab.job(job_id).state == JobState.DONE


def test_slurm_is_not_told_again_and_again_to_end_the_same_allocation(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, list[str]]] = []
    monkeypatch.setattr(lab.site, "cancel", lambda ids: told.append((lab.site.time, list(ids))))
    lab.site.gpus = 0  # what is asked for waits in the queue
    lab.submit(ita=900, max_gpus=1)
    lab.run(2)
    (allocation,) = lab.site.allocations.values()
    assert lab.ask("release_agent", allocation="all")["ok"]
    lab.run(50)
    own = [(at, ids) for at, ids in told if allocation.native_id in ids]
    assert len(own) == 2 and own[1][0] - own[0][0] >= 30


def test_a_running_job_whose_folder_was_removed_fails_and_says_so(lab: Lab) -> None:
    job_id = lab.submit(ita=300, max_gpus=1)
    lab.run(15)
    assert lab.job(job_id).state == JobState.RUNNING
    shutil.rmtree(lab.spool.job(job_id))
    lab.run(60)
    assert lab.job(job_id).state == JobState.FAILED
    assert "folder in the spool was removed" in str(lab.job(job_id).error)


def test_a_result_that_somebody_else_put_there_is_moved_aside(lab: Lab) -> None:
    job_id = lab.submit(ita=100, max_gpus=1)
    lab.run(12)
    foreign = lab.spool.job(job_id) / "result"
    foreign.mkdir()
    (foreign / "result.json").write_text('{"step": 1}')
    lab.run(60)
    assert lab.job(job_id).state == JobState.DONE
    promoted = read_json(foreign / "result.json")
    assert promoted is not None and promoted["step"] == 100
    (aside,) = lab.spool.job(job_id).glob("result.foreign.*")
    assert read_json(aside / "result.json") == {"step": 1}
