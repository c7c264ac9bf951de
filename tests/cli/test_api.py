"""The Python API does what the command line does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cli_calls import Cli, QuietBackend

import prompttuner
from prompttuner.errors import DataError, StateError


def job(**more: object) -> prompttuner.JobSpec:
    values = {"model": "small", "train": "train.jsonl", "eval": "eval.jsonl", "target": "loss<=0.5", **more}
    return prompttuner.JobSpec(**values)


def test_a_submitted_job_is_seen_by_python_and_command_line(cli: Cli, spec: Path, backend: QuietBackend) -> None:
    before = time.time()
    job_id = prompttuner.submit(job(deadline="30m", name="from-python"))
    after = time.time()
    assert prompttuner.state(job_id)["state"] == "queued"
    assert len(backend.asked) == 1
    shown = cli("show", job_id, "--json").json
    assert shown["name"] == "from-python"
    assert before + 1800 <= shown["deadline_at"] <= after + 1800
    assert shown["spec"]["train"] == str(Path("train.jsonl").absolute())


def test_bad_data_is_an_error_and_leaves_nothing(spec: Path, home: Path) -> None:
    Path("eval.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="line 1"):
        prompttuner.submit(job())
    assert not home.exists()


def test_waiting_ends_with_the_job_or_in_time(cli: Cli, spec: Path) -> None:
    job_id = prompttuner.submit(job())
    with pytest.raises(TimeoutError):
        prompttuner.wait(job_id, timeout_s=0.0)
    assert cli("cancel", job_id).code == 0
    assert prompttuner.wait(job_id)["state"] == "cancelled"
    with pytest.raises(StateError, match="without a result"):
        prompttuner.result_dir(job_id)
