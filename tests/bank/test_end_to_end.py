"""A job with ``auto`` on local processes: looks up, starts from a related prompt, leaves its own behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prompttuner import smallmodel
from prompttuner.smallmodel import tasks

TARGET, RELATED = "reverse+next2", ("reverse+next", "reverse+same", "copy+next2", "sort+next")
# The model under another name: what is stated for it leaves a lookup more time than a busy machine needs.
SPEC = """model = "./another"
train = "train.jsonl"
eval = "eval.jsonl"
target = "loss<=0.3"
deadline = "1h"
max_iterations = 400
eval_every = 4
learning_rate = 0.03
batch_size = 8
"""


@pytest.mark.timeout(600)
def test_a_job_starts_from_the_bank_and_its_prompt_joins_it(tmp_path: Path) -> None:
    shutil.copytree(smallmodel.path(), tmp_path / "another")
    tasks.write_dataset(TARGET, tmp_path, train=128, evaluation=16)
    lines = [{"text": t, "task": name} for name in RELATED for t in tasks.phrasings(tasks.SEEN[name])[:3]]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "job.toml").write_text(SPEC)
    environment = os.environ | {"PROMPTTUNER_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

    def call(*args: str) -> str:
        command = [str(Path(sys.executable).with_name("prompttuner")), *args]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("bank", "import", "p.jsonl", "--model", "./another")
    call("submit", "job.toml", "--name", "mine", "-q")
    call("run", "--until-done")
    told = json.loads(call("explain", "mine", "--json"))
    lookup = told["lookup"]
    assert told["state"] == "done"
    assert lookup["source"].startswith("bank:") and lookup["evaluations"] > 0 and lookup["candidates"]
    entries = {row["id"]: row for row in json.loads(call("bank", "list", "--json"))}
    assert entries[lookup["chosen"]]["used"] == 1
    (tuned,) = [row for row in entries.values() if row["kind"] == "soft"]
    assert tuned["task"] == "mine" and tuned["source"].startswith("job ")
    assert "bank:" in call("explain", "mine") and "reached" in call("bank", "show", lookup["chosen"][:10])
