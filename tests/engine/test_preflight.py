"""Checks at submit: what a worker would find out in its first minute, without reading a weight."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from model_folders import changed_copy, fresh_model

from prompttuner.engine.preflight import inspect
from prompttuner.errors import ModelError
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.spec import preflight as parent

MakeSpec = Callable[..., dict[str, Any]]


def frozen(values: dict[str, Any]) -> ResolvedSpec:
    return ResolvedSpec.expect(values)


def write(path: Path, source: str, target: str) -> str:
    path.write_text(json.dumps({"input": source, "target": target}) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"prompt_length": 256}, "spec", "leaves no room in the model's 256 positions"),
        ({"template": "chat"}, "model", "no chat template"),
        ({"train": ("a " * 300, "b")}, "data", r"sample 1 has \d+ tokens.*above the model's 256"),
        ({"eval": ("a", "Überraschung")}, "data", "1 of 1 targets .*allow_unknown_tokens"),
        ({"prompt_length": None, "initial_prompt": "text:" + "a " * 260}, "spec", "soft prompt of 260"),
    ],
)
def test_data_template_and_prompt_are_checked_against_the_model(
    changes: dict[str, Any], kind: str, words: str, make_spec: MakeSpec, tmp_path: Path
) -> None:
    values = {
        key: write(tmp_path / key, *value) if isinstance(value, tuple) else value for key, value in changes.items()
    }
    verdict = inspect(frozen(make_spec() | values))
    assert verdict.kind == kind
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(verdict.error)
    assert inspect(frozen(make_spec())).error == ""


def test_weights_are_checked_against_the_config(make_spec: MakeSpec, tmp_path: Path) -> None:
    more = changed_copy(tmp_path / "more", config={"num_hidden_layers": 6})
    assert "would be drawn anew" in inspect(frozen(make_spec(model=str(more)))).error
    fewer = changed_copy(tmp_path / "fewer", config={"num_hidden_layers": 3})
    assert "have no place" in inspect(frozen(make_spec(model=str(fewer)))).error
    assert inspect(frozen(make_spec(model=str(fewer), allow_unused_weights=True))).error == ""
    config = transformers.Gemma4TextConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, head_dim=8,
        hidden_size_per_layer_input=8, num_key_value_heads=2,
    )  # fmt: skip
    layered = fresh_model(tmp_path / "layered", "Gemma4ForCausalLM", config)
    assert "embeddings in each layer" in inspect(frozen(make_spec(model=str(layered)))).error


def test_a_sweep_pays_once_and_a_changed_model_is_looked_at_again(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answers: list[dict[str, Any] | None] = [{"kind": "", "error": "", "notes": ["so it is"]}]

    def ask(specs: Any) -> list[dict[str, Any] | None]:
        asked.append(len(specs))
        return answers[: len(specs)]

    monkeypatch.setattr(parent, "_ask", ask)
    model = changed_copy(tmp_path / "model")
    specs = [
        frozen(make_spec(model=str(model), seed=seed, learning_rate=rate)) for seed in range(9) for rate in (0.1, 0.2)
    ]
    cache = tmp_path / "checks"
    assert parent.preflight(specs, cache) == ["so it is"]
    assert parent.preflight(specs, cache) == ["so it is"]
    assert asked == [1, 0]
    (model / "config.json").write_text("{}")
    answers[0] = {"kind": "model", "error": "it is broken", "notes": []}
    for _ in range(2):  # what was refused is not remembered
        with pytest.raises(ModelError, match="it is broken"):
            parent.preflight(specs, cache)
    answers[0] = None
    assert "first worker checks" in parent.preflight(specs, cache)[0]
