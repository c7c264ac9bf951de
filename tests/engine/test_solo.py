"""A whole run: result that plain PEFT scores alike, and a killed run that ends as an unbroken one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prompttuner.engine.checkpoint import load_checkpoint
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.solo import main, run_solo
from prompttuner.engine.tensorboard import write_tensorboard

DEADLINE_S = 240


def peft_losses(folder: Path, rows: list[dict[str, str]]) -> float:
    """Mean loss of a target token, by plain PEFT, one sample at a time."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            given = tokenizer(row["input"])["input_ids"]
            learned = [*tokenizer(" " + row["target"])["input_ids"], tokenizer.eos_token_id]
            labels = torch.tensor([[-100] * len(given) + learned])
            loss = model(input_ids=torch.tensor([given + learned]), labels=labels).loss
            total, count = total + loss.item() * len(learned), count + len(learned)
    return total / count


def test_result_is_an_adapter_that_peft_scores_alike(make_spec: Callable, small: LoadedModel, tmp_path: Path) -> None:
    spec = make_spec(max_iterations=8, eval_every=4, learning_rate=0.03)
    tuner = run_solo(spec, tmp_path / "run", loaded=small)
    folder = tmp_path / "run" / "result"
    result = json.loads((folder / "result.json").read_text())
    rows = [json.loads(line) for line in Path(spec["eval"]).read_text().splitlines()]
    assert peft_losses(folder, rows) == pytest.approx(result["loss"], abs=1e-5)
    assert result["outcome"] == "exhausted"
    assert result["loss"] == tuner.progress.best.loss
    with (folder / "history.csv").open() as handle:
        history = list(csv.DictReader(handle))
    assert [int(row["step"]) for row in history] == [0, 4, 8]
    assert float(history[-1]["loss"]) == tuner.progress.evaluations[-1].loss
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


def test_history_can_be_shown_in_tensorboard(make_spec: Callable, small: LoadedModel, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tuner = run_solo(make_spec(max_iterations=4, eval_every=2), tmp_path / "run", loaded=small)
    assert write_tensorboard(tmp_path / "run" / "result", tmp_path / "logs") == 3
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("eval/loss")]
    assert found == [(row.step, pytest.approx(row.loss, rel=1e-6)) for row in tuner.progress.evaluations]
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]


def start(spec: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    file = folder.parent / f"{folder.name}.json"
    file.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "prompttuner.engine.solo", str(file), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> int:
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        state = load_checkpoint(folder)
        if state is not None:
            return int(state.meta["step"])
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no checkpoint in time")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_run_ends_as_an_unbroken_one(
    make_spec: Callable, small: LoadedModel, tmp_path: Path, how: signal.Signals
) -> None:
    target = {"metric": "loss", "op": "<=", "value": 1.0}
    spec = make_spec(
        "reverse+next2", target=target, max_iterations=80, eval_every=5, learning_rate=0.03, checkpoint_every_steps=2
    )
    folder = tmp_path / "broken"
    folder.mkdir()
    process = start(spec, folder)
    step = wait_for_checkpoint(folder, process)
    process.send_signal(how)
    process.communicate(timeout=DEADLINE_S)
    if how == signal.SIGTERM:
        assert process.returncode == 0
        assert load_checkpoint(folder).meta["step"] >= step
    assert not (folder / "result").exists()
    broken = run_solo(spec, folder, loaded=small)
    unbroken = run_solo(spec, tmp_path / "unbroken", loaded=small)
    assert broken.outcome == unbroken.outcome == "reached"
    assert broken.ita == unbroken.ita
    rows = [[(e.step, e.loss, e.metric, e.train_loss) for e in t.progress.evaluations] for t in (broken, unbroken)]
    assert rows[0] == rows[1]
    files = [tmp_path / name / "result" / "adapter_model.safetensors" for name in ("broken", "unbroken")]
    assert torch.equal(*(load_file(file)["prompt_embeddings"] for file in files))


def test_bad_data_is_a_message_with_its_line(
    make_spec: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    Path(spec["train"]).write_text('{"input": "a =", "target": "a"}\n{"input": "b ="\n')
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    monkeypatch.setattr(sys, "argv", ["solo", str(file), str(tmp_path / "run")])
    assert main() == 2
    assert "line 2" in capsys.readouterr().err
