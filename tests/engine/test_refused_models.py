"""A model is what it says, or is refused before anything is tuned on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_folders import changed_copy, fresh_model

from prompttuner import smallmodel
from prompttuner.engine.llm.loading import check_usable, load_weights
from prompttuner.engine.llm.model import load_model
from prompttuner.errors import ModelError
from prompttuner.spec.models import check_model_folder

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "intermediate_size": 48}
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}


def layers() -> int:
    return int(json.loads((smallmodel.path() / "config.json").read_text())["num_hidden_layers"])


def without_layer_one(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: changed_copy(f, without_layer_one), r"layers\.1\..*config and the stored weights do not belong"),
        (lambda f: changed_copy(f, config={"num_hidden_layers": layers() + 2}), r"would be drawn anew.*layers\.4\."),
        (
            lambda f: fresh_model(
                f, "LlamaForSequenceClassification", transformers.LlamaConfig(**SIZES, **HEADS, **UNTIED)
            ),
            r"lm_head\.weight.*saved from a classifier.*score",
        ),
        (lambda f: fresh_model(f, "LlamaModel", transformers.LlamaConfig(**SIZES, **HEADS, **UNTIED)), "headless"),
        (lambda f: fresh_model(f, "BertForSequenceClassification", transformers.BertConfig(**SIZES, **HEADS)), "cls."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("meta", [False, True])
def test_weights_that_are_not_stored_refuse_the_model_with_their_names(
    make: Callable[[Path], Path], words: str, meta: bool, tmp_path: Path
) -> None:
    folder = make(tmp_path / "model")
    with pytest.raises(ModelError, match=words):
        load_weights(str(folder), "it", torch.float32, False, meta=meta)
    if not meta:
        with pytest.raises(ModelError, match=words):
            load_model(folder)


def test_stored_weights_without_a_place_are_refused_unless_the_job_allows_it(tmp_path: Path) -> None:
    folder = changed_copy(tmp_path / "fewer", config={"num_hidden_layers": layers() - 1})
    loaded = load_model(folder)
    with pytest.raises(ModelError, match=r"no place.*layers\.3\..*allow_unused_weights"):
        check_usable(loaded, False)
    check_usable(loaded, True)
    assert load_weights(str(folder), "it", torch.float32, False, meta=True).unused == loaded.unused
    check_usable(load_model(smallmodel.path()), False)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_weights_named_by_a_wrapper_are_refused_from_their_header(prefix: str, tmp_path: Path) -> None:
    folder = changed_copy(tmp_path / "wrapped", lambda weights: {prefix + name: t for name, t in weights.items()})
    with pytest.raises(ModelError, match=prefix):
        check_model_folder(folder)
    with pytest.raises(ModelError, match="not stored"):
        load_model(folder)


def test_a_file_that_ends_early_is_refused_from_its_header(tmp_path: Path) -> None:
    folder = changed_copy(tmp_path / "cut")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (len(whole) - 1, 200_000, 1000, 4, 0):
        file.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="cut off"):
            check_model_folder(folder)


def test_an_adapter_is_named_as_that_with_its_base(tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ModelError, match=r"PEFT adapter \(LORA\), not a model: its base is some/base"):
        check_model_folder(tmp_path / "lora")
    both = changed_copy(tmp_path / "both")
    (both / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ModelError, match="also holds a PEFT adapter"):
        check_model_folder(both)


def test_encoder_decoders_are_refused_at_submit_and_at_load(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    folder = fresh_model(tmp_path / "t5", "T5ForConditionalGeneration", config)
    for check in (check_model_folder, load_model):
        with pytest.raises(ModelError, match="encoder-decoder"):
            check(folder)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("BertLMHeadModel", lambda: transformers.BertConfig(**SIZES, **HEADS)),
        ("RobertaForCausalLM", lambda: transformers.RobertaConfig(**SIZES, **HEADS)),
        ("ElectraForCausalLM", lambda: transformers.ElectraConfig(**SIZES, **HEADS, embedding_size=32)),
        ("XLNetLMHeadModel", lambda: transformers.XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48)),
    ],
)
def test_a_model_that_sees_later_tokens_is_refused_at_load(
    kind: str, config: Callable[[], Any], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no causal language model: a later token changes"):
        load_model(fresh_model(tmp_path / "model", kind, config()))


def test_a_model_that_needs_token_ids_beside_embeddings_is_refused_at_load(tmp_path: Path) -> None:
    config = transformers.Gemma4TextConfig(
        **SIZES,
        **HEADS,
        head_dim=8,
        hidden_size_per_layer_input=8,
        num_key_value_heads=2,
        vocab_size_per_layer_input=400,
    )
    with pytest.raises(ModelError, match="soft prompt cannot stand before its input"):
        load_model(fresh_model(tmp_path / "model", "Gemma4ForCausalLM", config))
