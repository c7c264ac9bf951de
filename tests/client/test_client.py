"""One client under both faces: asking gets an answer, and a refusal changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prompttuner
from prompttuner import JobSpec
from prompttuner.client import asking
from prompttuner.client.client import Client
from prompttuner.config import Settings
from prompttuner.controller import run
from prompttuner.errors import ConfigError, NotFound, NotOwner, StateError
from prompttuner.protocol.requests import Submit
from prompttuner.smallmodel.tasks import write_dataset
from prompttuner.spec import resolve

tick_once = run.tick_once


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(Settings(home=tmp_path / "home", backend="slurm", max_gpus=4))


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    train, evaluation = write_dataset("reverse+upper", tmp_path / "data", train=8, evaluation=4)
    return JobSpec(model="small", train=train, eval=evaluation, target="loss<=0.5")  # type: ignore[arg-type]


def inbox(client: Client) -> list[Path]:
    return list((client.settings.spool_dir / "inbox").glob("*.json"))


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick that applies requests is enough here: nothing is asked of Slurm."""
    from prompttuner.controller.tick import Controller

    monkeypatch.setattr(Controller, "tick", lambda self: self.inbox.apply())


def test_submit_returns_when_the_controller_has_taken_the_job(client: Client, spec: JobSpec) -> None:
    job = prompttuner.submit(spec, client.settings)
    assert prompttuner.state(job, client.settings)["state"] == "queued"
    assert [view.id for view in client.jobs()] == [job] == [client.job(job[:5]).id]


def test_submit_waits_for_the_answer_of_a_controller_that_runs_elsewhere(
    client: Client, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[object] = []

    def owned_at_first(settings: Settings) -> Any:
        tries.append(settings)
        if len(tries) == 1:
            raise NotOwner("another")
        return tick_once(settings)

    monkeypatch.setattr(run, "tick_once", owned_at_first)
    monkeypatch.setattr(asking, "AGAIN_S", 0.05)
    job = client.submit([resolve(spec, 1.8e9)])[0]
    assert prompttuner.state(job, client.settings)["state"] == "queued"


def test_a_refusal_is_raised_and_leaves_no_job(client: Client, spec: JobSpec) -> None:
    greedy = spec.model_copy(update={"min_gpus": 8, "max_gpus": 8})
    with pytest.raises(StateError, match="8 GPUs"):
        client.submit([resolve(greedy, 1.8e9)])
    assert client.jobs() == [] and inbox(client) == []


def test_a_controller_that_does_not_answer_gets_nothing_later(
    client: Client, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def owned(_settings: Settings) -> Any:
        raise NotOwner("another")

    monkeypatch.setattr(run, "tick_once", owned)
    monkeypatch.setattr(asking, "ANSWER_WAIT_S", 0.2)
    with pytest.raises(StateError, match="withdrawn"):
        client.submit([resolve(spec, 1.8e9)])[0]
    assert inbox(client) == []


def test_after_an_error_in_the_settings_nothing_was_changed(
    client: Client, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_settings: Settings) -> Any:
        raise ConfigError("there is no such policy")

    monkeypatch.setattr(run, "tick_once", wrong)
    with pytest.raises(ConfigError, match="withdrawn"):
        client.submit([resolve(spec, 1.8e9)])[0]
    assert inbox(client) == []


def test_what_is_asked_of_nothing_ends_at_once(client: Client, spec: JobSpec) -> None:
    with pytest.raises(NotFound):
        prompttuner.wait("jnosuchjob", settings=client.settings)
    job = client.submit([resolve(spec, 1.8e9)])[0]
    with pytest.raises(NotFound):
        prompttuner.wait("jnosuchjob", settings=client.settings)
    with pytest.raises(TimeoutError):
        prompttuner.wait(job, 0.0, client.settings)
    with pytest.raises(StateError, match="no result yet"):
        prompttuner.result_dir(job, client.settings)


def test_a_grid_is_one_request_and_all_of_it_or_nothing_is_submitted(client: Client, spec: JobSpec) -> None:
    specs = [resolve(spec.model_copy(update={"seed": seed}), 1.8e9) for seed in range(20)]
    jobs = client.submit(specs)
    assert sorted(jobs) == sorted(view.id for view in client.jobs())
    assert len(list(client.settings.spool_dir.glob("replies/*.json"))) == 1
    greedy = resolve(spec.model_copy(update={"min_gpus": 8, "max_gpus": 8}), 1.8e9)
    with pytest.raises(StateError):
        client.submit([*specs, greedy])
    assert len(client.jobs()) == 20


def test_a_grid_survives_its_json(spec: JobSpec) -> None:
    client = Client(Settings())
    request = client.new_request([resolve(spec, 1.8e9), resolve(spec, 1.8e9)], hold=True)
    assert Submit.read(request.to_json()) == request
    alone = client.new_request([resolve(spec, 1.8e9)])
    assert "jobs" not in alone.to_json() and Submit.read(alone.to_json()) == alone


def test_the_package_lists_its_public_names_without_importing_them() -> None:
    code = "import sys, prompttuner; print(dir(prompttuner)); print('pydantic' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"{sorted(prompttuner.__all__)}\nFalse\n"
