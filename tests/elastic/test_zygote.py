"""The zygote behind its client: loads, leases in forked workers, ends; and what happens when somebody dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from prompttuner.db.store.ownership import process_is_dead
from prompttuner.errors import ModelError
from prompttuner.files import write_json
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.jobs import Membership, Progress
from prompttuner.worker.membership import member_dir, propose, read_progress
from prompttuner.worker.paced.model import read_paced_model, write_paced_model
from prompttuner.worker.zygote.client import Zygote

PATIENCE_S = 200.0


class Listener:
    """Keeps the events that a zygote has sent."""

    def __init__(self, zygote: Zygote) -> None:
        self.zygote = zygote
        self.events: list[dict[str, Any]] = []

    def next(self, name: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.events += [asdict(event) for event in self.zygote.poll()]
            for event in self.events:
                if event["ev"] == name:
                    self.events.remove(event)
                    return event
            time.sleep(0.01)
        raise AssertionError(f"no {name!r} event, but {self.events}")


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    log = tmp_path_factory.mktemp("zygote") / "log.txt"
    zygote = Zygote.start(log, ElasticSettings(poll_s=0.02, checkpoint_steps=5).to_env())
    try:
        listener = Listener(zygote)
        listener.next("ready")
        yield listener
    finally:
        zygote.exit()
        print(log.read_text())


@pytest.fixture
def running(zygote: Listener) -> Listener:
    zygote.events.clear()
    return zygote


@pytest.fixture
def resident(tmp_path: Path) -> Iterator[Listener]:
    """A zygote with a long-lived worker, as on a GPU."""
    settings = ElasticSettings(poll_s=0.02, resident=True)
    listener = Listener(Zygote.start(tmp_path / "log.txt", settings.to_env()))
    yield listener
    listener.zygote.exit()
    print((tmp_path / "log.txt").read_text())


def new_job(folder: Path, spec: dict[str, Any], agent: str = "a") -> Path:
    folder.mkdir()
    write_json(folder / "spec.json", spec)
    assert propose(folder, Membership(1, (agent,), {agent: "127.0.0.1"}))
    return folder


def wait_for_step(job: Path, step: int) -> Progress:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        progress = read_progress(job, 1, "a")
        if progress is not None and progress.step is not None and progress.step >= step:
            return progress
        time.sleep(0.02)
    raise AssertionError(f"never came to step {step}: {read_progress(job, 1, 'a')}")


def test_one_load_serves_several_leases_each_in_a_fresh_process(
    running: Listener, make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spec = make_job_spec(max_iterations=10)
    running.zygote.load(spec["model"])
    loaded = running.next("loaded")
    assert loaded["bytes"] > 0 and loaded["model"] == spec["model"]
    assert loaded["threads"] == 1, "a process with threads must not be forked"
    pids = set()
    for name in ("one", "two"):
        job = new_job(tmp_path / name, spec)
        running.zygote.lease(job, "a", 1, "127.0.0.1")
        pids.add(running.next("lease_started")["pid"])
        end = running.next("lease_ended")
        assert (end["outcome"], end["error"], end["generation"]) == ("done", None, 1)
        done = json.loads((member_dir(job, 1, "a") / "done.json").read_text())
        assert done["outcome"] == "exhausted" and done["step"] == 10
        assert (member_dir(job, 1, "a") / "result" / "adapter_model.safetensors").stat().st_size > 0
    assert len(pids) == 2 and running.zygote.pid not in pids


def test_a_job_of_one_member_needs_no_address_that_others_could_reach(
    running: Listener, make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spec = make_job_spec(max_iterations=3)
    running.zygote.load(spec["model"])
    running.next("loaded")
    running.zygote.lease(new_job(tmp_path / "job", spec), "a", 1, "203.0.113.7")
    assert running.next("lease_ended")["outcome"] == "done"


def test_end_lease_checkpoints_and_the_next_lease_goes_on_from_there(
    running: Listener, make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    job = new_job(tmp_path / "job", make_job_spec(max_iterations=100000))
    running.zygote.lease(job, "a", 1, "127.0.0.1")
    wait_for_step(job, 3)
    running.zygote.end_lease()
    end = running.next("lease_ended")
    assert end["outcome"] == "terminated"
    saved = json.loads((member_dir(job, 1, "a") / "checkpoint.json").read_text())
    assert saved["step"] >= 3
    assert propose(job, Membership(1, ("a",)).after(["a"], by="controller"))
    running.zygote.lease(job, "a", 2, "127.0.0.1")
    running.next("lease_started")
    journal = member_dir(job, 2, "a") / "journal.jsonl"
    deadline = time.monotonic() + PATIENCE_S
    while not (journal.exists() and "\n" in journal.read_text()):
        assert time.monotonic() < deadline, "the second lease never began"
        time.sleep(0.02)
    assert json.loads(journal.read_text().splitlines()[0])["start"] == saved["step"]
    running.zygote.kill_lease()
    assert running.next("lease_ended")["outcome"] == "crashed"


def test_a_worker_killed_from_outside_is_a_crash_and_the_zygote_lives(
    running: Listener, make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    job = new_job(tmp_path / "job", make_job_spec(max_iterations=100000))
    running.zygote.lease(job, "a", 1, "127.0.0.1")
    os.kill(running.next("lease_started")["pid"], signal.SIGKILL)
    end = running.next("lease_ended")
    assert end["outcome"] == "crashed" and "SIGKILL" in end["error"]
    assert running.zygote.alive


def test_data_that_changed_since_submit_fails_the_lease_with_an_error_that_says_so(
    running: Listener, make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spec = make_job_spec()
    job = new_job(tmp_path / "job", spec)
    Path(spec["train"]).write_text('{"input": "x", "target": "y"}\n')
    running.zygote.lease(job, "a", 1, "127.0.0.1")
    end = running.next("lease_ended")
    error = json.loads((member_dir(job, 1, "a") / "error.json").read_text())
    assert end["outcome"] == "failed" and error["kind"] == "data" and "changed" in error["message"]


def test_a_model_that_is_not_there_is_an_answer_not_an_end(running: Listener, tmp_path: Path) -> None:
    running.zygote.load(str(tmp_path / "nothing"))
    failed = running.next("load_failed")
    assert "nothing" in failed["error"] and running.zygote.alive


def test_a_resident_worker_runs_leases_in_turn_and_is_replaced_when_it_dies(
    resident: Listener, make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spec = make_job_spec(max_iterations=5)
    resident.zygote.load(spec["model"])
    resident.next("loaded")
    pids = []
    for name in ("one", "two"):
        resident.zygote.lease(new_job(tmp_path / name, spec), "a", 1, "127.0.0.1")
        pids.append(resident.next("lease_started")["pid"])
        assert resident.next("lease_ended")["outcome"] == "done"
    assert pids[0] == pids[1], "the weights stay where they are"
    endless = new_job(tmp_path / "endless", make_job_spec(max_iterations=100000))
    resident.zygote.lease(endless, "a", 1, "127.0.0.1")
    wait_for_step(endless, 2)
    resident.zygote.end_lease()
    assert resident.next("lease_ended")["outcome"] == "terminated"
    assert resident.next("lease_started")["pid"] == pids[0]
    assert propose(endless, Membership(1, ("a",)).after(["a"], by="controller"))
    resident.zygote.lease(endless, "a", 2, "127.0.0.1")
    assert resident.next("lease_started")["pid"] == pids[0]
    resident.zygote.kill_lease()
    assert resident.next("lease_ended")["outcome"] == "crashed"
    resident.zygote.lease(new_job(tmp_path / "three", spec), "a", 1, "127.0.0.1")
    assert resident.next("lease_started")["pid"] not in pids
    assert resident.next("lease_ended")["outcome"] == "done"


def test_when_the_zygote_is_killed_its_worker_leaves_and_the_client_says_gone(
    make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    listener = Listener(Zygote.start(tmp_path / "log.txt", ElasticSettings(poll_s=0.02).to_env()))
    try:
        job = new_job(tmp_path / "job", make_job_spec(max_iterations=100000))
        listener.zygote.lease(job, "a", 1, "127.0.0.1")
        worker = listener.next("lease_started")["pid"]
        wait_for_step(job, 2)
        os.kill(listener.zygote.pid, signal.SIGKILL)
        assert listener.next("gone")["code"] == -signal.SIGKILL
        assert not listener.zygote.alive
        with pytest.raises(ModelError, match="start another"):
            listener.zygote.end_lease()
        deadline = time.monotonic() + PATIENCE_S
        while not process_is_dead(worker, ""):
            assert time.monotonic() < deadline, "the worker stays"
            time.sleep(0.02)
        progress = read_progress(job, 1, "a")
        assert progress is not None and progress.phase == "left"
        assert (member_dir(job, 1, "a") / "checkpoint.json").exists()
    finally:
        listener.zygote.exit()


def test_idle_work_computes_what_the_bank_lacks_and_yields_to_a_lease(running: Listener, tmp_path: Path) -> None:
    from prompttuner.bank import Bank, Entry
    from prompttuner.bank.index.shelf_index import load_index
    from prompttuner.smallmodel import path

    running.zygote.load(str(path()))
    running.next("loaded")
    shelf = Bank.create(tmp_path / "bank").shelf(str(path()))
    for word in ("reverse the letters", "sort the letters", "copy the letters"):
        shelf.add(Entry(kind="text", model=str(path()), text=word))
    running.zygote.idle_work(tmp_path / "bank", str(path()))
    deadline = time.monotonic() + PATIENCE_S
    while len(load_index(shelf).ids) < 3 or load_index(shelf).missing():
        assert time.monotonic() < deadline, "features were never computed"
        time.sleep(0.1)
    for number in range(400):
        shelf.add(Entry(kind="text", model=str(path()), text=f"text number {number}"))
    running.zygote.idle_work(tmp_path / "bank", str(path()))
    running.zygote.lease(tmp_path / "no-such-job", "a1", 1, "127.0.0.1")
    assert running.next("lease_ended")["outcome"] == "failed"
    assert running.zygote.alive


def test_a_lease_in_the_middle_of_a_trial_waits_for_one_step_at_most(
    running: Listener, make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    interrupt_a_trial(running, make_job_spec(max_iterations=5), tmp_path)


def test_a_resident_worker_leaves_a_trial_for_a_lease(
    resident: Listener, make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    interrupt_a_trial(resident, make_job_spec(max_iterations=5), tmp_path)


def interrupt_a_trial(listener: Listener, spec: dict[str, Any], tmp_path: Path) -> None:
    """A lease comes while the bank's task is being tried: it is served, and the trial goes on afterwards."""
    from prompttuner.bank import Bank, Entry
    from prompttuner.bank.folder.tasks import note_task
    from prompttuner.bank.index.trial_log import read_trials

    shelf = Bank.create(tmp_path / "bank").shelf(spec["model"])
    entry = shelf.add(Entry("text", "small", text="copy the letters"))
    for word in ("reverse the letters", "sort the letters"):
        shelf.add(Entry("text", "small", text=word))
    # Steps so large that the trial could not end before the lease does, if the lease had to wait for it.
    note_task(shelf, entry, {**spec, "batch_size": 512}, "j1")
    listener.zygote.load(spec["model"])
    listener.next("loaded")
    listener.zygote.idle_work(tmp_path / "bank", spec["model"])
    deadline = time.monotonic() + PATIENCE_S
    while not (shelf.root / "trials" / f"{entry}.json").exists():
        assert time.monotonic() < deadline, "no trial was begun"
        time.sleep(0.02)
    listener.zygote.lease(new_job(tmp_path / "job", spec), "a", 1, "127.0.0.1")
    listener.next("lease_started")
    assert listener.next("lease_ended")["outcome"] == "done"
    before = read_trials(shelf)[entry]
    assert before.losses and not before.complete
    note_task(shelf, entry, {**spec, "batch_size": 2}, "j1")  # and now it may end
    listener.zygote.idle_work(tmp_path / "bank", spec["model"])
    while not read_trials(shelf)[entry].complete:
        assert time.monotonic() < deadline + PATIENCE_S, "the trial was not taken up again"
        time.sleep(0.05)
    after = read_trials(shelf)[entry]
    assert all(after.losses[name][: len(losses)] == losses for name, losses in before.losses.items())
    assert len(after.after) == 3
    listener.zygote.lease(new_job(tmp_path / "next", spec), "a", 1, "127.0.0.1")
    assert listener.next("lease_ended")["outcome"] == "done"


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Listener]:
    zygote = Zygote.start(tmp_path / "log.txt", ElasticSettings(poll_s=0.02).to_env())
    try:
        listener = Listener(zygote)
        listener.next("ready")
        yield listener
    finally:
        zygote.exit()


def test_a_paced_model_takes_its_time_and_no_weights_and_serves_paced_jobs_only(
    fresh: Listener, make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    first = str(write_paced_model(tmp_path / "first", start_s=0.0, switch_s=60.0))
    other = str(write_paced_model(tmp_path / "other", start_s=60.0, switch_s=0.5))
    fresh.zygote.load(first)
    assert fresh.next("loaded")["seconds"] < 30  # the agent (this test) began long ago: nothing is left to sleep
    fresh.zygote.load(other)
    assert fresh.next("loaded")["seconds"] >= 0.5
    assert "tokenizers" not in Path(f"/proc/{fresh.zygote.pid}/maps").read_text(), "transformers was imported"
    paced = {"step_s": 0.001, "speedup": [1.0], "iterations": 5}
    target = {"metric": "loss", "op": "<=", "value": 0.5}
    spec = {"model": other, "target": target, "batch_size": 4, "max_iterations": 10, "paced": paced}
    fresh.zygote.lease(new_job(tmp_path / "job", spec), "a", 1, "127.0.0.1")
    assert fresh.next("lease_ended")["outcome"] == "done"
    fresh.zygote.lease(new_job(tmp_path / "real", {**make_job_spec(), "model": other}), "a", 1, "127.0.0.1")
    ended = fresh.next("lease_ended")
    assert ended["outcome"] == "failed" and "paced model" in ended["error"]


@pytest.mark.parametrize("head_start_s", [0.0, 0.5])
def test_a_paced_load_is_cut_short_by_the_end(tmp_path: Path, head_start_s: float) -> None:
    zygote = Zygote.start(tmp_path / "log.txt", ElasticSettings().to_env())
    Listener(zygote).next("ready")
    zygote.load(str(write_paced_model(tmp_path / "slow", start_s=1e9, switch_s=1.0)))
    time.sleep(head_start_s)  # the end comes with the load, or in the middle of it
    zygote.exit(timeout_s=PATIENCE_S)
    assert zygote._process.returncode == 0, "it ended by itself"


def test_a_spoilt_paced_model_is_told(tmp_path: Path) -> None:
    folder = write_paced_model(tmp_path / "model", 1.5, 2.5)
    found = read_paced_model(str(folder))
    assert found is not None and (found.start_s, found.switch_s) == (1.5, 2.5)
    assert read_paced_model(str(tmp_path)) is None and read_paced_model("small") is None
    for bad in ({"start_s": "soon", "switch_s": 1}, {"start_s": 1}, {"start_s": -1, "switch_s": 1}):
        write_json(folder / "paced.json", bad)
        with pytest.raises(ModelError, match=r"paced\.json"):
            read_paced_model(str(folder))


@pytest.mark.parametrize("resident", [False, True])
def test_a_job_gets_weights_of_its_own_type_whatever_the_agent_is_warm_with(
    resident: bool, make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    settings = ElasticSettings(poll_s=0.02, resident=resident)
    listener = Listener(Zygote.start(tmp_path / "log.txt", settings.to_env()))
    try:
        for name, dtype in (("half", "bfloat16"), ("full", "float32"), ("half-again", "bfloat16")):
            spec = make_job_spec(max_iterations=2, dtype=dtype)
            if name == "half":
                listener.zygote.load(spec["model"], dtype)
                listener.next("loaded")
            job = new_job(tmp_path / name, spec)
            listener.zygote.lease(job, "a", 1, "127.0.0.1")
            assert listener.next("lease_ended")["outcome"] == "done"
            result = json.loads((member_dir(job, 1, "a") / "result" / "result.json").read_text())
            assert result["weights_dtype"] == dtype
    finally:
        listener.zygote.exit()


def test_trusted_code_runs_for_the_model_that_is_named_only(
    running: Listener, make_job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spec = make_job_spec(max_iterations=2)
    folder, marker = tmp_path / "odd", tmp_path / "ran"
    shutil.copytree(spec["model"], folder)
    (folder / "code.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OddConfig(LlamaConfig):\n    model_type = 'odd'\n"
        "class OddModel(LlamaForCausalLM):\n    config_class = OddConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "code.OddConfig", "AutoModelForCausalLM": "code.OddModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "odd", "auto_map": names}))
    ends = {}
    for name, trusted in (("other", ["another/model"]), ("named", [str(folder)])):
        job = new_job(tmp_path / name, {**spec, "model": str(folder), "trust_remote_code": trusted})
        running.zygote.lease(job, "a", 1, "127.0.0.1")
        ends[name] = running.next("lease_ended")
        assert marker.exists() == (name == "named")
    assert ends["other"]["outcome"] == "failed" and "trust_remote_code" in ends["other"]["error"]
    assert ends["named"]["outcome"] == "done"
