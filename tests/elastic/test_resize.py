"""Jobs that grow and shrink while they run, in place: exact, no step lost, nobody's process replaced."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_job import FAST, Job, check_journal, paced_spec, wait_for
from safetensors.torch import load_file

from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.engine.solo import run_solo
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.jobs import Progress
from prompttuner.worker import member
from prompttuner.worker.elastic.group import Group, PeerLost
from prompttuner.worker.lease import LeaseEnd
from prompttuner.worker.membership import member_dir, propose, read_progress


def said(job_dir: Path, generation: int, agent: str) -> Progress:
    """What a member has told of its progress."""
    progress = read_progress(job_dir, generation, agent)
    assert progress is not None
    return progress


def batch_of(step: int) -> list[int]:
    return list(range(step * 8, step * 8 + 8))


def start(folder: Path, jobs: list[Job], quick: int | None = 6, **paced: Any) -> Job:
    job = Job(folder, paced_spec(**paced), quick=quick)
    jobs.append(job)
    return job


@pytest.fixture(scope="module")
def small() -> LoadedModel:
    from prompttuner import smallmodel

    torch.set_num_threads(1)
    return load_model(str(smallmodel.path()))


def outcome(end: LeaseEnd | int) -> Any:
    return end.outcome if isinstance(end, LeaseEnd) else end


def adapter(folder: Path) -> torch.Tensor:
    return load_file(folder / "result" / "adapter_model.safetensors")["prompt_embeddings"]


def losses(folder: Path) -> list[float]:
    rows = (folder / "result" / "history.csv").read_text().splitlines()
    column = rows[0].split(",").index("loss")
    return [float(row.split(",")[column]) for row in rows[1:]]


@pytest.mark.parametrize("way", ["in_place", "restart"])
def test_a_job_resized_1_2_4_3_1_ends_with_the_prompt_of_an_undisturbed_one(
    way: str, tmp_path: Path, jobs: list[Job], small: LoadedModel, make_job_spec: Callable[..., dict[str, Any]]
) -> None:
    spec = make_job_spec(max_iterations=60)
    alone = run_solo(spec, tmp_path / "alone", loaded=small)
    job = Job(tmp_path / "job", spec, model=small, settings=replace(FAST, way=way), quick=4)
    jobs.append(job)
    for members in (["a"], ["a", "b"], ["a", "b", "c", "d"], ["a", "c", "d"], ["d"]):
        job.assign(members)
        job.wait_step(3, members)
    job.release()
    assert outcome(job.wait_end("d")) == "done"
    _, done, folder = job.result()
    assert done["step"] == 60 and done["outcome"] == "exhausted"
    assert torch.allclose(adapter(folder), adapter(tmp_path / "alone"), atol=1e-5, rtol=0)
    assert losses(folder) == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
    assert check_journal(job, 60, alone.sample_ids) == {}, "a planned resize loses no step"
    pids = {(line["agent"], line["pid"]) for line in job.journal() if "step" in line}
    if way == "in_place":
        assert len(pids) == 4, "those who stay keep their process"
        assert set(said(job.dir, 5, "d").throughput or ()) == {"4", "3", "1"}, "measured by number of members"
    else:
        assert len(pids) == 1 + 2 + 4 + 3 + 1, "a new worker for each generation"


def test_after_losses_the_prompt_is_still_the_same(
    tmp_path: Path, jobs: list[Job], small: LoadedModel, make_job_spec: Callable[..., dict[str, Any]]
) -> None:
    spec = make_job_spec(max_iterations=60)
    alone = run_solo(spec, tmp_path / "alone", loaded=small)
    job = Job(tmp_path / "job", spec, model=small, quick=6)
    jobs.append(job)
    job.assign(["a", "b", "c"])
    job.wait_step(5, ["a", "b", "c"])
    job.signal("a")  # rank 0, which serves the store
    job.wait_step(3, ["b", "c"])
    job.signal("c")
    job.wait_step(3, ["b"])
    job.assign(["d", "b"])  # the newcomer becomes rank 0
    job.release()
    assert outcome(job.wait_end("d")) == "done" and outcome(job.wait_end("b")) == "done"
    _, _, folder = job.result()
    assert torch.allclose(adapter(folder), adapter(tmp_path / "alone"), atol=1e-4, rtol=0)
    assert losses(folder) == pytest.approx(losses(tmp_path / "alone"), abs=1e-4)
    lost = check_journal(job, 60, alone.sample_ids)
    assert sum(lost.values()) <= 2, "only the step in which a member died is computed again"


def test_the_last_member_killed_costs_at_most_one_checkpoint_interval(
    tmp_path: Path, jobs: list[Job], small: LoadedModel, make_job_spec: Callable[..., dict[str, Any]]
) -> None:
    spec = make_job_spec(max_iterations=40)
    alone = run_solo(spec, tmp_path / "alone", loaded=small)
    settings = ElasticSettings(**{**SHORT, "checkpoint_steps": 5})
    job = Job(tmp_path / "job", spec, model=small, settings=settings, quick=14)
    jobs.append(job)
    job.assign(["a"])
    job.wait_step(13, ["a"])
    job.signal("a")
    assert job.wait_end("a") == -signal.SIGKILL
    job.assign(["b"])
    job.release()
    assert outcome(job.wait_end("b")) == "done"
    _, _, folder = job.result()
    assert torch.equal(adapter(folder), adapter(tmp_path / "alone")), "a resume is bit for bit"
    assert sum(check_journal(job, 40, alone.sample_ids).values()) <= 6


SHORT: dict[str, Any] = {"loss_timeout_s": 4, "grace_s": 1.5, "join_timeout_s": 4, "poll_s": 0.02}


def test_a_frozen_member_is_lost_within_the_bound_and_harmless_when_it_wakes(tmp_path: Path, jobs: list[Job]) -> None:
    job = Job(tmp_path / "job", paced_spec(iterations=100_000), settings=replace(FAST, loss_timeout_s=6))
    jobs.append(job)
    job.assign(["a", "b"])
    job.wait_step(5, ["a", "b"])
    job.signal("a", signal.SIGSTOP)
    begin = time.monotonic()
    job.wait_step(1, ["b"])
    assert time.monotonic() - begin < 90, "the bound is loss_timeout_s 6 + grace_s 3, on a busy machine"
    job.signal("a", signal.SIGCONT)
    assert outcome(job.wait_end("a")) == "left"

    job.assign(["b"], stop="cancelled")
    assert outcome(job.wait_end("b")) == "left"


def test_asked_to_leave_rank_0_hands_over_and_the_others_plan_without_it(tmp_path: Path, jobs: list[Job]) -> None:
    job = start(tmp_path / "job", jobs, iterations=400)
    job.assign(["a", "b", "c"])
    job.wait_step(5, ["a", "b", "c"])
    job.signal("a", signal.SIGTERM)
    assert outcome(job.wait_end("a")) == "terminated"
    job.wait_step(2, ["b", "c"])
    assert job.plan is not None and job.plan.by in {"b", "c"}
    job.release()
    for agent in ("b", "c"):
        assert outcome(job.wait_end(agent)) == "done"
    assert check_journal(job, 400, batch_of) == {}


def test_when_all_members_are_replaced_the_new_ones_begin_where_the_old_ones_stopped(
    tmp_path: Path, jobs: list[Job]
) -> None:
    job = start(tmp_path / "job", jobs, iterations=400)
    job.assign(["a", "b"])
    job.wait_step(5, ["a", "b"])
    job.assign(["c", "d"])
    job.wait_step(2, ["c", "d"])
    job.release()
    assert outcome(job.wait_end("a")) == outcome(job.wait_end("b")) == "left"
    assert outcome(job.wait_end("c")) == outcome(job.wait_end("d")) == "done"
    assert check_journal(job, 400, batch_of) == {}


def test_no_members_means_pause_at_a_checkpoint(tmp_path: Path, jobs: list[Job]) -> None:
    job = start(tmp_path / "job", jobs, iterations=300)
    job.assign(["a", "b"])
    job.wait_step(5, ["a", "b"])
    job.assign([], stop="held")
    assert outcome(job.wait_end("a")) == outcome(job.wait_end("b")) == "left"
    assert not list(job.dir.glob("g*/*/done.json"))
    job.assign(["c"])
    job.release()
    assert outcome(job.wait_end("c")) == "done"
    assert check_journal(job, 300, batch_of) == {}


def test_a_cancelled_job_keeps_its_best_prompt(
    tmp_path: Path, jobs: list[Job], small: LoadedModel, make_job_spec: Callable[..., dict[str, Any]]
) -> None:
    job = Job(tmp_path / "job", make_job_spec(max_iterations=100000), model=small)
    jobs.append(job)
    job.assign(["a"])
    job.wait_step(3, ["a"])
    job.assign([], stop="cancelled")
    assert outcome(job.wait_end("a")) == "left"
    done = json.loads((member_dir(job.dir, 1, "a") / "done.json").read_text())
    assert done["outcome"] == "stopped" and done["step"] >= 3
    assert (member_dir(job.dir, 1, "a") / "result" / "adapter_model.safetensors").exists()


def test_newcomers_who_never_come_do_not_stop_anybody(tmp_path: Path, jobs: list[Job]) -> None:
    job = Job(tmp_path / "job", paced_spec(iterations=100_000), settings=ElasticSettings(**SHORT))
    jobs.append(job)
    job.assign(["a"])
    job.wait_step(3, ["a"])
    job.pids["ghost"] = -1  # an agent that has been told, and whose lease never starts
    plan = job.plan
    assert plan is not None
    assert propose(job.dir, plan.after(["a", "ghost"], by="controller"))
    job.pids.pop("ghost")
    at = job_step(job, 1)
    wait_for(lambda: job_step(job, 1) > at + 20, "steps while it is waited for")
    job.wait_step(1, ["a"])
    assert job.plan is not None and (job.plan.generation, job.plan.by) == (3, "a")


def test_a_job_that_ends_while_a_change_is_planned_has_its_result_in_the_newest_generation(
    tmp_path: Path, jobs: list[Job]
) -> None:
    job = start(tmp_path / "job", jobs, iterations=60, step_s=0.02)
    job.assign(["a", "b"])
    job.wait_step(5, ["a", "b"])
    plan = job.plan
    assert plan is not None
    assert propose(job.dir, plan.after(["ghost", "b"], by="controller"))
    job.release()
    assert outcome(job.wait_end("a")) == outcome(job.wait_end("b")) == "done"
    done = json.loads((member_dir(job.dir, 2, "b") / "done.json").read_text())
    assert done["step"] == 60 and (member_dir(job.dir, 2, "b") / "result" / "result.json").exists()
    assert not (member_dir(job.dir, 1, "a") / "done.json").exists()


def job_step(job: Job, generation: int) -> int:
    steps = [line["step"] for line in job.journal() if line["g"] == generation and "ids" in line]
    return max(steps, default=-1)


def test_more_members_than_samples_are_given_back_with_a_reason(tmp_path: Path, jobs: list[Job]) -> None:
    spec = {**paced_spec(iterations=100), "batch_size": 2}
    job = Job(tmp_path / "job", spec)
    jobs.append(job)
    job.assign(["a", "b", "c"])
    end = job.wait_end("c")
    assert isinstance(end, LeaseEnd) and end.outcome == "left" and "no sample" in str(end.error)
    assert outcome(job.wait_end("a")) == outcome(job.wait_end("b")) == "done"
    assert check_journal(job, 100, lambda step: [2 * step, 2 * step + 1]) == {}


def test_a_worker_that_keeps_dying_at_one_step_is_given_up(tmp_path: Path, jobs: list[Job]) -> None:
    job = start(tmp_path / "job", jobs, iterations=2000, step_s=0.2, quick=None)
    for _ in range(3):
        job.assign(["a"])
        job.wait_step(1, ["a"])
        job.signal("a")
        assert job.wait_end("a") == -signal.SIGKILL
    job.assign(["a"])
    end = job.wait_end("a")
    error = json.loads((member_dir(job.dir, 4, "a") / "error.json").read_text())
    assert outcome(end) == "failed" and error["kind"] == "crash" and "3 times" in error["message"]


def test_a_target_that_was_reached_before_the_worker_died_is_a_result_at_once(
    tmp_path: Path, jobs: list[Job], small: LoadedModel, make_job_spec: Callable[..., dict[str, Any]]
) -> None:
    spec = make_job_spec(target="loss<=3", max_iterations=100000)
    job = Job(tmp_path / "job", spec, model=small)
    jobs.append(job)
    job.assign(["a"])
    assert outcome(job.wait_end("a")) == "done"
    folder = member_dir(job.dir, 1, "a")
    (folder / "done.json").unlink()
    shutil.rmtree(folder / "result")
    steps = len([line for line in job.journal() if "ids" in line])
    job.assign(["b"])
    assert outcome(job.wait_end("b")) == "done"
    _, done, again = job.result()
    assert done["outcome"] == "reached" and again == member_dir(job.dir, 2, "b")
    assert len([line for line in job.journal() if "ids" in line]) == steps, "no step was done again"


def test_members_that_can_not_reach_each_other_leave_the_job_to_one_of_them(
    tmp_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = member.open_group

    def firewalled(store: Any, rank: int, world: int, **options: Any) -> Group:
        if world > 1:
            raise PeerLost("no route to host")
        return connect(store, rank, world, **options)

    monkeypatch.setattr(member, "open_group", firewalled)
    job = start(tmp_path / "job", jobs, iterations=20, quick=None)
    job.assign(["a", "b"])
    ends = sorted(outcome(job.wait_end(agent)) for agent in ("a", "b"))
    assert ends == ["done", "left"]
    assert job.plan is not None and len(job.plan.members) == 1 and job.plan.generation <= 5
    assert check_journal(job, 20, batch_of) == {}


def test_a_lookup_in_an_empty_bank_is_told_and_tuning_begins_from_the_vocabulary(
    tmp_path: Path, jobs: list[Job], small: LoadedModel, make_job_spec: Callable[..., dict[str, Any]]
) -> None:
    job = Job(tmp_path / "job", make_job_spec(initial_prompt="auto", max_iterations=4), model=small)
    jobs.append(job)
    job.assign(["a", "b"], lookup_s=5.0)
    assert outcome(job.wait_end("a")) == "done"
    told = json.loads((member_dir(job.dir, 1, "a") / "lookup.json").read_text())
    assert told["source"] == "vocab" and told["why"] and told["granted_s"] == 5.0
    assert not (member_dir(job.dir, 1, "b") / "lookup.json").exists(), "rank 0 looks up for all"
    assert said(job.dir, 1, "b").initial_prompt == "vocab"


def test_a_paced_worker_says_that_it_is_one(tmp_path: Path, jobs: list[Job]) -> None:
    job = start(tmp_path / "job", jobs, iterations=30, looked_up=20, lookup_s=0.2, quick=None)
    job.assign(["a"], lookup_s=1.0)
    assert outcome(job.wait_end("a")) == "done"
    _, done, folder = job.result()
    result = json.loads((folder / "result" / "result.json").read_text())
    assert done["step"] == 20 and done["paced"] and "nothing was tuned" in result["note"]
    assert said(job.dir, 1, "a").paced
