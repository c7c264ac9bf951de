"""A job whose own set-up fails, with real processes: two tries, then its reason stands wherever one looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from prompttuner.smallmodel.tasks import write_dataset


def test_a_job_whose_set_up_fails_ends_after_two_tries_and_every_command_says_why(tmp_path: Path) -> None:
    train, evaluation = write_dataset("reverse+upper", tmp_path / "data", train=16, evaluation=4)
    spec = tmp_path / "job.toml"
    spec.write_text(
        f'model = "small"\ntrain = "{train}"\neval = "{evaluation}"\ntarget = "loss<=0.5"\n'
        'setup = ["echo cannot find the data mount", "exit 3"]\n'
    )
    environment = {**os.environ, "PROMPTTUNER_HOME": str(tmp_path / "home")}

    def call(*words: str) -> str:
        command = [sys.executable, "-c", "from prompttuner.cli import main; main()", *words]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("submit", str(spec))
    call("run", "--until-done")
    ended = json.loads(call("pool", "--all", "--json"))["allocations"]
    assert len(ended) == 2
    assert {one["end_cause"] for one in ended} == {"job"}
    (job,) = json.loads(call("status", "--all", "--json"))["jobs"]
    assert job["state"] == "failed"
    said = ["exit code 3", "cannot find the data mount"]
    for text in (job["error"], call("explain", job["id"]), call("logs", ended[0]["allocation"][:8])):
        assert all(words in text for words in said), text
