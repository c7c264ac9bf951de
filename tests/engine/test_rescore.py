"""The script that re-scores a result with plain PEFT agrees with what was reported, and notices when it should not."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prompttuner.engine.llm.encoding import encode
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.solo import run_solo
from prompttuner.spec.data import Sample

SCRIPT = Path(__file__).parents[2] / "examples" / "rescore_with_peft.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("rescore_with_peft", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_script_uses_none_of_our_code() -> None:
    lines = SCRIPT.read_text().splitlines()
    assert not [line for line in lines if line.strip().startswith(("import prompttuner", "from prompttuner"))]


@pytest.mark.parametrize("template", ["{input} {target}", "Q: {input}\nA: {target} .", "{input}{target}", "chat"])
def test_script_encodes_as_the_tuner_does(script: Any, small: LoadedModel, template: str) -> None:
    tokenizer = copy.deepcopy(small.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} </s>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    rows = [{"input": "a b c =", "target": "C B A"}, {"input": "", "target": "x"}]
    ours = encode([Sample(**row) for row in rows], template, tokenizer)
    assert [tuple(item) for item in ours] == script.encode(rows, template, tokenizer)


@pytest.mark.parametrize("metric", ["exact_match", "rougeL", "loss"])
def test_reported_numbers_hold(
    script: Any, make_spec: Callable, small: LoadedModel, tmp_path: Path, metric: str
) -> None:
    target = {"metric": metric, "op": ">=", "value": 1.0}
    if metric == "loss":
        target = {"metric": "loss", "op": "<=", "value": 0.001}
    spec = make_spec(
        "reverse+next2",
        target=target,
        template="{input} {target}",
        initial_prompt="text:reverse the list then shift up",
        prompt_length=None,
        max_iterations=4,
        eval_every=4,
    )
    run_solo(spec, tmp_path / "run", loaded=small)
    folder = tmp_path / "run" / "result"
    result = json.loads((folder / "result.json").read_text())
    assert script.rescore(folder, "cpu")
    result["metric" if metric != "loss" else "loss"] += 0.25
    (folder / "result.json").write_text(json.dumps(result))
    assert not script.rescore(folder, "cpu")
