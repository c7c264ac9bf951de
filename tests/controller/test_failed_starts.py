"""What cannot start is not started again and again: pools pause, jobs fail by their own fault, all are told why."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_site import FakeWorker, FakeZygote
from fake_slurm import FakeAllocation
from lab import Lab
from sqlalchemy.orm import Session

from prompttuner.controller import run as running
from prompttuner.controller.observe.trials import pause_s
from prompttuner.db.queries import allocations, events, trials
from prompttuner.db.queries import allocations as allocation_rows
from prompttuner.files import make_private_dir
from prompttuner.protocol.files import write_message
from prompttuner.protocol.jobs import LeaseError
from prompttuner.protocol.zygote import ZygoteEvent
from prompttuner.slurm.ends import EXIT_CODE, STAGE, Fault, judge, staged
from prompttuner.states import JobState
from prompttuner.worker.membership import member_dir

SAID = "Lmod has detected the following error: cuda/99.9 is unknown"


def fail_setup(lab: Lab, stage: str = "setup") -> Callable[[FakeAllocation], Any]:
    """From now on the script of every allocation fails in this stage; returns what worked before."""
    before = lab.site.start_program

    def failing(allocation: FakeAllocation) -> None:
        folder = allocation.request.folder
        (folder / STAGE).write_text(f"{stage}\n")
        (folder / EXIT_CODE).write_text("1\n")
        (folder / "log.txt").write_text(f"loading modules\n{SAID}\n")

    lab.site.start_program = failing
    return before


def fail_loads(monkeypatch: pytest.MonkeyPatch, model: str, kind: str = "job") -> None:
    """Loads of this model fail."""
    real = FakeZygote.load

    def load(self: FakeZygote, name: str, dtype: str = "auto", trust_remote_code: bool = False) -> None:
        if name == model:
            said = ZygoteEvent(ev="load_failed", model=name, error="header too large", kind=kind)
            self._due.append((self._site.time, said))
        else:
            real(self, name, dtype, trust_remote_code)

    monkeypatch.setattr(FakeZygote, "load", load)


def test_a_failing_set_up_is_tried_three_times_in_five_minutes_and_the_reason_is_told(lab: Lab) -> None:
    fail_setup(lab)
    job = lab.submit(deadline_s=3000.0, max_gpus=1)
    lab.run(300)
    assert 2 <= len(lab.site.submitted) <= 3
    row = lab.job(job)
    assert row.state == JobState.QUEUED, "the site's fault ends no job"
    assert SAID in row.note and "exit code 1" in row.note and "pool resume" in row.note
    assert any(SAID in event.cause for event in lab.store.query(events.latest))
    assert all(SAID in str(one.end_detail) for one in lab.store.query(allocations.find))
    lab.run(3600, every=5.0)
    assert len(lab.site.submitted) <= 7, "pauses double"


def test_pauses_double_up_to_an_hour() -> None:
    assert [pause_s(failures) for failures in (1, 2, 3, 6, 7, 8, 500)] == [60, 120, 240, 1920, 3600, 3600, 3600]


def test_resume_a_new_setting_and_success_end_a_pause(lab: Lab) -> None:
    worked = fail_setup(lab)
    job = lab.submit(deadline_s=3000.0, max_gpus=1)
    lab.run(10)
    assert len(lab.site.submitted) == 1
    lab.crash()
    lab.run(10)
    assert len(lab.site.submitted) == 1, "a new controller knows of the pause"
    assert "1 pause" in lab.ask("resume_pool")["message"]
    lab.run(2)
    assert len(lab.site.submitted) == 2, "tried at once"
    lab.run(5)
    lab.settings = lab.settings.model_copy(update={"local": lab.settings.local.model_copy(update={"slots": 3})})
    lab.site.start_program = worked
    lab.crash()
    lab.run(60)
    assert lab.job(job).state == JobState.DONE, "a changed setting is tried at once"
    assert lab.store.query(trials.load) == {}


def test_a_model_that_cannot_be_loaded_fails_its_jobs_after_two_nodes_and_starves_nobody(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_loads(monkeypatch, "/models/cut")
    broken = [lab.submit(model="/models/cut", model_name="cut", deadline_s=None, max_gpus=1) for _ in range(3)]
    urgent = lab.submit(ita=50, deadline_s=200.0, max_gpus=1)
    lab.run(120)
    assert [lab.job(job).state for job in broken] == [JobState.FAILED] * 3
    assert all("header too large" in str(lab.job(job).error) for job in broken)
    assert lab.job(urgent).state == JobState.DONE
    ended = [one for one in lab.store.query(allocations.find) if one.end_cause == Fault.JOB]
    assert len(ended) <= 4 and len({one.node for one in ended}) >= 2
    assert lab.store.query(trials.load) == {}


def test_files_that_cannot_be_read_now_are_the_sites_fault_not_the_jobs(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_loads(monkeypatch, "/models/tiny", kind="site")
    job = lab.submit(deadline_s=3000.0, max_gpus=1)
    lab.run(300)
    assert lab.job(job).state == JobState.QUEUED
    assert len(lab.site.submitted) <= 3


def test_a_job_whose_own_set_up_fails_is_failed_with_its_words(lab: Lab) -> None:
    fail_setup(lab, "job-setup")
    job = lab.submit(setup=["exit 3"], max_gpus=1)
    lab.run(200)
    assert lab.job(job).state == JobState.FAILED
    assert "set-up failed" in str(lab.job(job).error) and SAID in str(lab.job(job).error)
    assert len(lab.site.submitted) <= 4


def test_a_pool_on_trial_never_holds_the_last_slot_that_a_deadline_could_use(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_loads(monkeypatch, "/models/away", kind="site")
    lab.submit(model="/models/away", model_name="away", deadline_s=None, max_gpus=1)
    lab.run(10)
    assert len(lab.store.query(trials.load)) == 1
    holding = lab.submit(ita=2000, max_iterations=3000, deadline_s=None, max_gpus=1)
    lab.run(20)
    assert lab.job(holding).state == JobState.RUNNING
    lab.site.step(60.0)  # the pause is over: one of two slots is free
    urgent = lab.submit(ita=20, deadline_s=400.0, max_gpus=1)
    before = len(lab.site.submitted)
    lab.tick()
    fresh = [one for one in lab.store.query(allocations.find) if one.uuid in lab.site.submitted[before:]]
    assert all(one.model == "/models/tiny" for one in fresh)
    lab.run(60)
    assert lab.job(urgent).state == JobState.DONE


def test_run_until_done_ends_when_nothing_can_go_on(lab: Lab) -> None:
    fail_setup(lab)
    lab.submit(deadline_s=3000.0, max_gpus=1)
    lab.run(100)
    assert running._in_vain(lab.controller.resources) == "", "it is tried a few times first"
    lab.run(300)
    why = running._in_vain(lab.controller.resources)
    assert "nothing can go on" in why and SAID in why


def test_an_end_that_somebody_wanted_is_nobodys_fault(lab: Lab) -> None:
    lab.submit(max_gpus=1, deadline_s=3000.0)
    lab.run(3)
    (starting,) = lab.site.running()
    lab.site.preempt(starting)
    lab.run(3)
    assert lab.store.query(trials.load) == {}


@pytest.mark.parametrize(
    ("site", "job", "stage", "fault"),
    [
        (["false || exit 1"], [], "setup", Fault.SITE),
        ([":"], ["echo 'no such data' >&2", "exit 3"], "job-setup", Fault.JOB),
        ([":"], [":"], "launch", Fault.POOL),
    ],
)
def test_the_script_tells_how_far_it_got(
    tmp_path: Path, site: list[str], job: list[str], stage: str, fault: Fault
) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    script = "\n".join([*staged(folder, site, job), "/no/such/python -m agent"])
    with (folder / "log.txt").open("w") as log:
        subprocess.run(["bash", "-c", script], check=False, stdout=log, stderr=log)
    assert (folder / STAGE).read_text().strip() == stage
    verdict = judge(folder, None, "FAILED")
    assert verdict is not None and verdict.fault is fault and "exit code" in verdict.reason
    if fault is Fault.JOB:
        assert "exit code 3" in verdict.reason and "no such data" in verdict.reason


def test_slurm_forgetting_an_allocation_that_never_began_blames_nobody(tmp_path: Path) -> None:
    assert judge(tmp_path, None, "VANISHED") is None
    assert judge(tmp_path, None, "CANCELLED by 1000") is None
    assert judge(tmp_path, None, "NODE_FAIL") is not None


def test_a_bad_node_is_drained_and_its_job_goes_on_elsewhere(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    bad: list[str] = []
    real = FakeWorker.advance

    def advance(self: FakeWorker, seconds: float) -> None:
        bad[:] = bad or [self.agent]
        if self.agent not in bad:
            real(self, seconds)
            return
        folder = make_private_dir(member_dir(self.job_dir, self.generation, self.agent))
        write_message(folder / LeaseError.FILE, LeaseError("host", "can not listen on 203.0.113.7"))
        self.outcome = "failed"

    monkeypatch.setattr(FakeWorker, "advance", advance)
    jobs = [lab.submit(ita=40, max_gpus=1, deadline_s=900.0) for _ in range(4)]
    lab.run(150)
    assert [lab.job(job).state for job in jobs] == [JobState.DONE] * 4
    node = lab.store.query(lambda session: allocations.get(session, bad[0])).node
    (kept_away,) = lab.store.query(lambda session: trials.excluded(session, lab.site.time))
    assert kept_away.node == node and "203.0.113.7" in kept_away.reason
    assert sum("can not listen" in event.cause for event in lab.store.query(events.latest)) >= 1
    lab.pass_days(0.1)
    assert list(lab.store.query(lambda session: trials.excluded(session, lab.site.time))) == [], "it expires"


def test_exclusions_never_cover_half_of_the_nodes(lab: Lab) -> None:
    def work(session: Session) -> list[list[str]]:
        found = []
        for number in range(1, 8):
            intent = {"uuid": f"u{number}", "pool": "p", "model": "m"}
            allocation_rows.add(session, [intent], 1.0, "test")
            allocation_rows.get(session, f"u{number}").node = f"n{number}"
            trials.exclude(session, f"n{number}", 2e9, "bad", 1.0)
            session.flush()
            found.append(trials.to_exclude(session, "p", 1e9))
        return found

    assert [len(nodes) for nodes in lab.state.write(work)] == [0, 0, 1, 1, 2, 2, 3]
