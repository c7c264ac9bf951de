"""The small model loaded once, data sets and specs for tuner tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prompttuner import smallmodel
from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.engine.tuner import Tuner, read_data
from prompttuner.smallmodel import tasks

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small() -> LoadedModel:
    return load_model(smallmodel.path())


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Resolved specs for the small model; keywords replace values, ``task`` chooses the data."""

    def make(task: str = "reverse+upper", train: int = 64, evaluation: int = 16, **changes: Any) -> dict[str, Any]:
        files = tasks.write_dataset(
            task, tmp_path / f"data-{task}-{train}-{evaluation}", train=train, evaluation=evaluation
        )
        spec: dict[str, Any] = {
            "model": str(smallmodel.path()),
            "dtype": "float32",
            "train": str(files[0]),
            "eval": str(files[1]),
            "template": "{input} {target}",
            "target": {"metric": "loss", "op": "<=", "value": 0.01},
            "max_iterations": 12,
            "prompt_length": 8,
            "learning_rate": 0.01,
            "batch_size": 8,
            "eval_every": 4,
            "eval_samples": None,
            "seed": 3,
            "initial_prompt": "vocab",
            "bucketing": False,
        }
        return spec | changes

    return make


@pytest.fixture
def make_tuner(small: LoadedModel) -> Callable[[dict[str, Any]], Tuner]:
    """Tuners with an own copy of the model each, as members in processes of their own have."""

    def make(spec: dict[str, Any]) -> Tuner:
        loaded = replace(small, model=copy.deepcopy(small.model))
        return Tuner(loaded, spec, read_data(spec), initial_prompt(spec, loaded))

    return make
