"""Initial prompts of every kind, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prompttuner.engine.initial import embed_tokens, initial_prompt
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.errors import DataError, SpecError

TEXT = "reverse the letters then in capitals :"


def spec(kind: str, length: int | None = None, seed: int = 0) -> dict[str, Any]:
    return {"initial_prompt": kind, "prompt_length": length, "seed": seed}


@pytest.mark.parametrize("kind", ["random", "vocab"])
def test_sampled_prompts_depend_on_the_seed_alone(small: LoadedModel, kind: str) -> None:
    first, again, other = (initial_prompt(spec(kind, 9, seed), small).tensor for seed in (1, 1, 2))
    assert first.shape == (9, small.hidden)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_prompt_has_the_spread_of_the_vocabulary(small: LoadedModel) -> None:
    prompt = initial_prompt(spec("random", 200), small).tensor
    assert prompt.std().item() == pytest.approx(small.model.get_input_embeddings().weight.std().item(), rel=0.2)


def test_vocabulary_prompt_holds_no_special_token(small: LoadedModel) -> None:
    prompt = initial_prompt(spec("vocab", 300), small).tensor
    weight = small.model.get_input_embeddings().weight
    nearest = torch.cdist(prompt, weight).argmin(dim=1).tolist()
    assert not set(nearest) & set(small.tokenizer.all_special_ids)


def test_text_sets_the_length(small: LoadedModel) -> None:
    found = initial_prompt(spec(f"text: {TEXT}"), small)
    ids = small.tokenizer(TEXT)["input_ids"]
    assert torch.equal(found.tensor, embed_tokens(small, ids))
    assert found.warnings == []


@pytest.mark.parametrize(("length", "done"), [(3, "cut"), (17, "repeated")])
def test_text_is_fitted_to_a_given_length_with_a_warning(small: LoadedModel, length: int, done: str) -> None:
    own = initial_prompt(spec(f"text:{TEXT}"), small).tensor
    found = initial_prompt(spec(f"text:{TEXT}", length), small)
    assert torch.equal(found.tensor[-min(length, len(own)) :], own[-length:]), "its end stays next to the sample"
    assert found.tensor.shape[0] == length and all(torch.equal(row, own[0]) for row in found.tensor[: -len(own)])
    assert done in found.warnings[0]


def test_unknown_words_of_a_text_are_counted(small: LoadedModel) -> None:
    assert "2 of 4 tokens" in initial_prompt(spec("text:reverse the flibber gibbet"), small).warnings[0]


@pytest.mark.parametrize("key", ["prompt", "prompt_embeddings", "anything"])
def test_file_prompt(small: LoadedModel, tmp_path: Path, key: str) -> None:
    tensor = torch.randn(6, small.hidden)
    save_file({key: tensor}, tmp_path / "p.safetensors")
    assert torch.equal(initial_prompt(spec(str(tmp_path / "p.safetensors")), small).tensor, tensor)


def test_file_of_another_model_is_refused(small: LoadedModel, tmp_path: Path) -> None:
    save_file({"prompt": torch.randn(6, small.hidden + 1)}, tmp_path / "p.safetensors")
    with pytest.raises(DataError, match="made for another model"):
        initial_prompt(spec(str(tmp_path / "p.safetensors")), small)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_broken_file_is_named(small: LoadedModel, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"p\.safetensors"):
        initial_prompt(spec(str(path)), small)


def test_values_that_are_not_finite_are_refused(small: LoadedModel, tmp_path: Path) -> None:
    save_file({"prompt": torch.full((2, small.hidden), float("nan"))}, tmp_path / "p.safetensors")
    with pytest.raises(DataError, match="not finite"):
        initial_prompt(spec(str(tmp_path / "p.safetensors")), small)


def test_auto_takes_what_the_bank_gives_and_falls_back_to_the_vocabulary(small: LoadedModel) -> None:
    tensor = torch.randn(5, small.hidden)
    assert torch.equal(initial_prompt(spec("auto"), small, lambda: tensor).tensor, tensor)
    fallback = initial_prompt(spec("auto", 7), small, lambda: None)
    assert torch.equal(fallback.tensor, initial_prompt(spec("vocab", 7), small).tensor)
    assert "nothing from the bank" in fallback.origin


def test_nonsense_is_refused(small: LoadedModel) -> None:
    with pytest.raises(SpecError, match="random, vocab"):
        initial_prompt(spec("zeros"), small)
