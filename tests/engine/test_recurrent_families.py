"""Families without attention heads: tuned, their answers free of padding, their result readable by PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_folders import fresh_model
from peft import PeftModel

from prompttuner.engine.llm.batching import collate
from prompttuner.engine.llm.model import load_model
from prompttuner.engine.llm.prefix import PrefixModel
from prompttuner.engine.solo import run_solo

FAMILIES: dict[str, Any] = {
    "MambaForCausalLM": lambda: transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8),
    "Mamba2ForCausalLM": lambda: transformers.Mamba2Config(
        hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16, n_groups=1
    ),
    "FalconMambaForCausalLM": lambda: transformers.FalconMambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8),
    "RwkvForCausalLM": lambda: transformers.RwkvConfig(hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
    "xLSTMForCausalLM": lambda: transformers.xLSTMConfig(hidden_size=32, num_blocks=2, num_heads=4),
}


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_is_tuned_and_its_result_is_what_peft_computes(
    kind: str, make_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = fresh_model(tmp_path / "model", kind, FAMILIES[kind]())
    spec = make_spec(
        model=str(folder), target={"metric": "exact_match", "op": ">=", "value": 1.0},
        train=16, evaluation=8, max_iterations=2, eval_every=2, prompt_length=4,
    )  # fmt: skip
    tuner = run_solo(spec, tmp_path / "run")
    result = tmp_path / "run" / "result"
    said = json.loads((result / "result.json").read_text())
    assert said["outcome"] == "exhausted" and tuner.step_index == 2

    wrapped = PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(folder), result).eval()
    loaded = load_model(folder)
    [sample] = tuner._eval[:1]
    ids = torch.tensor([[*sample.prompt, *sample.target]])
    with torch.no_grad():
        theirs = wrapped(input_ids=ids, use_cache=False).logits[0, 4 + len(sample.prompt) - 1 : -1]
        ours = PrefixModel(loaded).target_logits(tuner.result_prompt, collate([sample], 0, loaded.device))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)

    prefix = PrefixModel(loaded)
    prompt = tuner.result_prompt
    together = prefix.answers(prompt, tuner._eval, 5)
    alone = [prefix.answers(prompt, [sample], 5)[0] for sample in tuner._eval]
    assert together == alone, "padding must not change an answer"
