"""Fixtures: a small real job, and its resolved spec."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prompttuner.spec import make_spec, resolve

LETTERS = "abcdefgh"


def write_data(folder: Path, count: int = 64) -> tuple[Path, Path]:
    """A copying task in the small model's own words."""
    paths = []
    for name, offset in (("train", 0), ("eval", 7)):
        lines = []
        for number in range(count if name == "train" else 16):
            word = " ".join(LETTERS[(number * 5 + k * k + offset) % len(LETTERS)] for k in range(4))
            lines.append(json.dumps({"input": word, "target": word}))
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        paths.append(path)
    return paths[0], paths[1]


@pytest.fixture
def make_job_spec(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A resolved spec of a real job on the small model; keyword arguments override."""

    def make(**values: Any) -> dict[str, Any]:
        train, evaluation = write_data(tmp_path)
        base = {
            "model": "small",
            "train": str(train),
            "eval": str(evaluation),
            "target": "loss<=0.0001",
            "max_iterations": 60,
            "prompt_length": 4,
            "batch_size": 8,
            "eval_every": 20,
            "eval_samples": 8,
            "initial_prompt": "vocab",
        }
        return resolve(make_spec({**base, **values}), time.time()).to_json()

    return make


@pytest.fixture
def jobs() -> Iterator[list[Any]]:
    """Jobs whose processes are killed when the test ends, however it ends."""
    made: list[Any] = []
    yield made
    for job in made:
        job.kill_all()
