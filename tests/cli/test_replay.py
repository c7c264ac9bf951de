"""``prompttuner replay``: submissions at the trace's times, exactly once whatever cuts them off."""

import json
import time
from pathlib import Path

import pytest
from cli_calls import Cli

from prompttuner.config import load_layers
from prompttuner.config.settings import Settings
from prompttuner.controller import replay as replay_module
from prompttuner.controller.replay import Replay, Submitted, schedule, wait_and_submit
from prompttuner.errors import NotFound, SpecError, StateError
from prompttuner.profiles import stated
from prompttuner.trace.format import write_trace
from prompttuner.trace.job import TraceJob
from prompttuner.worker.paced.model import read_paced_model

JOBS = [
    TraceJob("a", 100.0, "gpt2-base", 40, 0.1, deadline_s=160, max_gpus=4, bank_factor=0.5),
    TraceJob("b/1", 104.0, "vicuna-7b", 10, 0.5, max_gpus=2, priority=3),
    TraceJob("c", 130.0, "gpt2-base", 7, 0.1, deadline_s=140, max_gpus=1, stop_on_miss=True),
]
PROFILES = stated(["gpt2-base", "vicuna-7b"])


@pytest.fixture
def settings(home: Path) -> Settings:
    found = load_layers({}).settings
    found.make_home()
    return found


def inbox(settings: Settings) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((settings.spool_dir / "inbox").glob("*.json"))]


def start(settings: Settings, begin: float, accelerate: float = 1.0) -> Replay:
    entries = schedule(JOBS, PROFILES, accelerate=accelerate)
    return Replay.start(settings.home / "replays" / "t", entries, "t.csv", accelerate, begin)


def test_acceleration_divides_gaps_deadlines_and_iterations_alike() -> None:
    plain, fast = schedule(JOBS, PROFILES), schedule(JOBS, PROFILES, accelerate=2)
    assert [entry.at_s for entry in fast] == [entry.at_s / 2 for entry in plain] == [50, 52, 65]
    assert [entry.slo_s for entry in plain] == [60, None, 10]
    assert [entry.slo_s for entry in fast] == [30, None, 5]
    assert [entry.spec["paced"]["iterations"] for entry in fast] == [20, 5, 4]
    assert (
        fast[0].spec["paced"]["step_s"] == 0.1 and fast[0].spec["paced"]["lookup_s"] == PROFILES["gpt2-base"].lookup_s
    )
    with pytest.raises(SpecError, match="accelerate"):
        schedule(JOBS, PROFILES, accelerate=0)


def test_jobs_are_submitted_when_due_and_each_once(settings: Settings) -> None:
    running = start(settings, begin=1000.0)
    assert running.submit_due(settings, 1099.0) == []
    assert [one.trace_id for one in running.submit_due(settings, 1105.0)] == ["a", "b/1"]
    assert running.submit_due(settings, 1105.0) == []
    assert running.next_at() == 1130.0
    requests = {request["spec"]["name"]: request for request in inbox(settings)}
    assert set(requests) == {"a", "b_1"}
    spec = requests["a"]["spec"]
    assert spec["deadline_at"] == 1105.0 + 60 and spec["submitted_at"] == 1105.0
    assert spec["model_name"] == "gpt2-base" and spec["max_gpus"] == 4
    model, profile = read_paced_model(spec["model"]), PROFILES["gpt2-base"]
    assert model is not None and (model.start_s, model.switch_s) == (profile.start_s, profile.switch_s)
    assert requests["b_1"]["spec"]["model"] != spec["model"] and set(spec["paced"]) & {"llm", "start_s"} == set()
    assert spec["paced"]["speedup"] == pytest.approx([1.0, 1.95, 2.825, 3.7]) and spec["paced"]["looked_up"] == 20
    assert requests["b_1"]["spec"]["deadline_at"] is None and requests["b_1"]["spec"]["priority"] == 3


def test_a_submission_cut_off_before_it_was_noted_is_repeated_under_the_same_ids(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(settings, begin=1000.0)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(replay_module, "append_line", cut_off)
        running.submit_due(settings, 1104.0)
    before = inbox(settings)
    assert [request["spec"]["name"] for request in before] == ["a"]
    again = Replay(running.folder)
    assert [one.trace_id for one in again.submit_due(settings, 1104.0)] == ["a", "b/1"]
    after = inbox(settings)
    assert len(after) == 2 and {before[0]["id"]} <= {request["id"] for request in after}


def test_a_torn_last_line_counts_as_not_submitted(settings: Settings) -> None:
    running = start(settings, begin=1000.0)
    running.submit_due(settings, 1200.0)
    journal = running.folder / "submitted.jsonl"
    journal.write_text(journal.read_text()[:-20])
    assert [entry.trace_id for entry in Replay(running.folder).left] == ["c"]


def test_a_late_submission_is_told_and_its_deadline_counts_from_it(settings: Settings) -> None:
    running = start(settings, begin=1000.0)
    late = running.submit_due(settings, 1500.0)
    assert [one.late_s for one in late] == [400, 396, 370]
    assert {r["spec"]["name"]: r["spec"]["deadline_at"] for r in inbox(settings)}["c"] == 1510.0


def test_waiting_sleeps_until_each_job_is_due(settings: Settings) -> None:
    running = start(settings, begin=time.time() - 130.5, accelerate=1.0)
    told: list[Submitted] = []
    slept: list[float] = []
    wait_and_submit(running, settings, told.extend, slept.append)
    assert [one.trace_id for one in told] == ["a", "b/1", "c"]
    assert all(0 < seconds <= 60 for seconds in slept)


def test_command_replays_resumes_and_refuses(cli: Cli, settings: Settings, spec: Path) -> None:
    write_trace(Path("t.csv"), [JOBS[0], TraceJob("z", 1e6, "gpt2-base", 5, 0.1)])
    done = cli("replay", "t.csv", "--once", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["jobs"] == 2 and told["left"] == 1
    assert cli("replay", "t.csv", "--once").code == 4  # there is one already
    resumed = cli("replay", "t.csv", "--resume", "--once", "--json")
    assert json.loads(resumed.out)["left"] == 1
    tuned = cli("replay", "t.csv", "--once", "--spec", spec, "--folder", "other", "--first", 1, "--json")
    assert tuned.code == 0, tuned.err
    ids = set(json.loads(tuned.out)["ids"].values())
    assert [request["spec"]["model_name"] for request in inbox(settings) if request["job"] in ids] == ["small"]
    assert json.loads(done.out)["accelerate"] == 1 and json.loads(done.out)["source"] == "t.csv"
    assert cli("tick").code == 0
    names = {row["name"] for row in json.loads(cli("status", "--json").out)["jobs"]}
    assert "a" in names and "z" not in names
    assert cli("replay").code == 2
    assert cli("replay", "--resume", "--folder", "nowhere").code == 3
    nowhere = cli("replay", "t.csv", "--folder", "t.csv/below")
    assert nowhere.code == 1 and "cannot write t.csv/below: Not a directory; name another place" in nowhere.err


def test_submissions_that_the_controller_refuses_are_told(cli: Cli, settings: Settings) -> None:
    write_trace(Path("t.csv"), [JOBS[0], TraceJob("wide", 100.0, "gpt2-base", 5, 0.1, min_gpus=64, max_gpus=64)])
    assert cli("replay", "t.csv", "--accelerate", 4, "--once").code == 0
    assert cli("tick").code == 0
    again = cli("replay", "t.csv", "--resume", "--once", "--json")
    assert again.code == 0 and "refused wide: 64 GPUs at a time are more than" in again.err
    assert list(json.loads(again.out)["refused"]) == ["wide"]
    report = cli("report", "--json")
    assert json.loads(report.out)["Paced stand-ins"] == "1 of 1 job, accelerated 4 times: another workload"


def test_submissions_that_fell_due_together_are_counted_one_by_one(cli: Cli, settings: Settings) -> None:
    write_trace(Path("t.csv"), [TraceJob(name, 5.0, "gpt2-base", 5, 0.1) for name in "abc"])
    lines = cli("replay", "t.csv", "--once").out.splitlines()
    assert [line.split("(")[1] for line in lines] == ["1 of 3)", "2 of 3)", "3 of 3)"]


def test_a_folder_is_never_overwritten(settings: Settings) -> None:
    start(settings, 1.0)
    with pytest.raises(StateError, match="--resume"):
        start(settings, 2.0)
    with pytest.raises(NotFound, match="no replay"):
        Replay(settings.home)
