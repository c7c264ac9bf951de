"""The default learning rate: it follows the scale of the embeddings, and a job keeps the one it began with."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prompttuner import smallmodel
from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.rate import rate_of
from prompttuner.engine.solo import run_solo
from prompttuner.engine.state import pack, unpack
from prompttuner.engine.tuner import Tuner, read_data
from prompttuner.errors import SpecError
from prompttuner.spec import make_spec as make_job
from prompttuner.spec import resolve


def scaled(small: LoadedModel, scale: float) -> LoadedModel:
    """A copy that computes the same function: all that is added to the residual stream is ``scale`` times as large."""
    model = copy.deepcopy(small.model)
    with torch.no_grad():
        head = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
        model.model.embed_tokens.weight = torch.nn.Parameter(
            scale * model.model.embed_tokens.weight.detach(), requires_grad=False
        )
        model.lm_head.weight = head
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= scale
            layer.mlp.down_proj.weight *= scale
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.variance_epsilon *= scale**2
        model.model.norm.variance_epsilon *= scale**2
    return replace(small, model=model)


def loss_after(loaded: LoadedModel, spec: dict[str, Any], steps: int = 16) -> float:
    tuner = Tuner(loaded, spec, read_data(spec), initial_prompt(spec, loaded))
    for _ in range(steps):
        tuner.train_step()
    return tuner.evaluate().loss


def test_the_rate_fits_models_of_any_scale(small: LoadedModel, make_spec: Callable[..., dict[str, Any]]) -> None:
    """On the copy of a tenth gradients are ten times as large and clipped; on one of ten times, AdamW's smallest
    divisor begins to show. Both are small beside a rate ten times too low or too high."""
    assert rate_of(small) == 0.01, "the small model keeps the default that its figures were made with"
    auto = make_spec("reverse+next2", learning_rate_auto=True)
    wanted = loss_after(small, auto)
    tenth, tenfold = scaled(small, 0.1), scaled(small, 10.0)
    assert rate_of(tenth) == pytest.approx(0.001, rel=0.01)
    assert rate_of(tenfold) == pytest.approx(0.1, rel=0.01)
    assert loss_after(tenth, auto) == pytest.approx(wanted, rel=0.02)
    stated = abs(loss_after(tenfold, make_spec("reverse+next2")) - wanted)
    assert abs(loss_after(tenfold, auto) - wanted) < 0.5 * stated


def test_auto_is_the_default_and_a_number_for_older_agents(tmp_path: Path) -> None:
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text('{"input": "a", "target": "b"}\n')
    values = {"model": "small", "train": tmp_path / "train.jsonl", "eval": tmp_path / "eval.jsonl", "target": "loss<=1"}
    for given in ({}, {"learning_rate": "auto"}, {"lr": "auto"}):
        spec = resolve(make_job({**values, **given}), now=0.0)
        assert (spec.learning_rate, spec.learning_rate_auto) == (0.01, True)
    stated = resolve(make_job({**values, "lr": "0.3"}), now=0.0)
    assert (stated.learning_rate, stated.learning_rate_auto) == (0.3, False)
    with pytest.raises(SpecError, match="learning_rate"):
        make_job({**values, "lr": "fast"})


def test_a_job_keeps_the_rate_it_began_with(
    make_spec: Callable[..., dict[str, Any]], make_tuner: Callable[..., Tuner]
) -> None:
    state = make_tuner(make_spec(learning_rate_auto=True, learning_rate=0.5)).state()
    assert state.meta["learning_rate"] == 0.01
    state.meta["learning_rate"] = 0.007
    kept, older = (make_tuner(make_spec(learning_rate_auto=True, learning_rate=0.5)) for _ in range(2))
    kept.load_state(unpack(pack(state)))
    assert kept.learning_rate == kept._optimiser.param_groups[0]["lr"] == 0.007
    kept.share(False)
    assert kept.learning_rate == kept._optimiser.param_groups[0]["lr"] == 0.5, "what a member of before takes"
    del state.meta["learning_rate"]
    older.spec["learning_rate_auto"] = False
    older._rate = 0.5
    older.load_state(state)
    assert older.learning_rate == 0.5


def test_the_result_says_which_rate_was_taken(
    tmp_path: Path, small: LoadedModel, make_spec: Callable[..., dict[str, Any]]
) -> None:
    spec = make_spec(max_iterations=2, eval_every=2, learning_rate_auto=True, model=str(smallmodel.path()))
    run_solo(spec, tmp_path / "run", loaded=small)
    assert json.loads((tmp_path / "run" / "result" / "result.json").read_text())["learning_rate"] == 0.01
