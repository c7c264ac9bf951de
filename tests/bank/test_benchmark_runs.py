"""The benchmark tunes many prompts at once: each must fare as with the product's own tuner."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from prompttuner import smallmodel
from prompttuner.engine.initial import InitialPrompt
from prompttuner.engine.llm.model import load_model
from prompttuner.engine.tuner import Tuner
from prompttuner.smallmodel import tasks

PATH = Path(__file__).parents[2] / "benchmarks" / "bank_runs.py"


@pytest.fixture(scope="module")
def runs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bank_runs", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bank_runs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_prompts_tuned_together_fare_as_with_the_tuner(runs: ModuleType) -> None:
    torch.set_num_threads(1)
    loaded = load_model(str(smallmodel.path()))
    cap = 6
    job = runs.Job.make(loaded, tasks.HELD_OUT["reverse+next2"], 0, cap)
    related = tasks.phrasings(tasks.SEEN["reverse+next"])[0]
    starts = [job.start(loaded, kind) for kind in ("vocab", "random", f"text:{related}")]
    together = runs.tune_many(loaded, job, starts, cap)
    for start, run in zip(starts, together, strict=True):
        tuner = Tuner(loaded, job.spec, job.data, InitialPrompt(start, "test"))
        while not tuner.finished:
            tuner.evaluate() if tuner.evaluation_due else tuner.train_step()
        assert run.ita == tuner.ita
        assert run.first_loss == pytest.approx(tuner.progress.evaluations[0].loss, abs=1e-4)
        assert run.loss == pytest.approx(tuner.progress.evaluations[-1].loss, abs=2e-3)


def test_no_target_has_its_own_instruction_in_the_bank() -> None:
    seen = {text for task in tasks.SEEN.values() for text in tasks.phrasings(task)}
    assert not seen & {text for task in tasks.HELD_OUT.values() for text in tasks.phrasings(task)}
