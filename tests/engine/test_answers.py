"""Greedy answers and what they are compared with: end tokens, chat templates, generation configs, odd tokenizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import changed_copy

from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.encoding import encode
from prompttuner.engine.llm.generation import AnswerReader, end_tokens
from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.engine.llm.prefix import PrefixModel
from prompttuner.engine.llm.survival import check_targets, survival
from prompttuner.engine.metrics import exact_match
from prompttuner.engine.solo import run_solo
from prompttuner.engine.tuner import Tuner, read_data
from prompttuner.errors import DataError
from prompttuner.spec.data import Sample
from prompttuner.worker.tuner_task import TunerTask

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LEFT_OVERS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.9},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 9},
    {"suppress_tokens": [10, 11, 12, 13, 14, 15]},
    {"return_dict_in_generate": True},
    {"stop_strings": ["a"]},
    {"num_return_sequences": 2},
    {"num_beams": 3},
    {"do_sample": True, "temperature": 3.0},
]


@pytest.fixture
def tokenizer(small: LoadedModel) -> Any:
    return copy.deepcopy(small.tokenizer)


@pytest.mark.parametrize("left_over", LEFT_OVERS, ids=lambda value: next(iter(value)))
def test_settings_of_a_models_generation_config_change_no_answer(
    left_over: dict[str, Any], small: LoadedModel, make_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spec = make_spec(initial_prompt="text:reverse the words")
    samples = encode(read_data(spec).evaluation, spec["template"], small.tokenizer)
    loaded = load_model(changed_copy(tmp_path / "model", generation=left_over))
    prompt = initial_prompt(spec, small).tensor
    assert PrefixModel(loaded).answers(prompt, samples, 8) == PrefixModel(small).answers(prompt, samples, 8)


def test_all_end_tokens_of_the_model_end_an_answer(tokenizer: Any, tmp_path: Path) -> None:
    ids = tokenizer.convert_tokens_to_ids(["a", "b"])
    loaded = load_model(changed_copy(tmp_path / "model", generation={"eos_token_id": ids}))
    assert end_tokens(loaded) == {*ids, tokenizer.eos_token_id}
    reader = AnswerReader.of(loaded)
    said = tokenizer("c d", add_special_tokens=False)["input_ids"]
    assert reader.text([*said, ids[1], *said]) == "c d"


def test_a_thinking_template_is_learned_and_compared_without_what_it_adds(small: LoadedModel, tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = THINKING
    loaded = replace(small, tokenizer=tokenizer)
    reader = AnswerReader.of(loaded, "chat")
    [sample] = encode([Sample("a b", "c d")], "chat", tokenizer, reader=reader)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in reader.ends
    assert sample.target == tokenizer("c d<|im_end|>", add_special_tokens=False)["input_ids"]
    assert reader.frame is not None and reader.frame.before == "<think>\n\n</think>\n\n"
    assert exact_match(reader.text(sample.target), sample.text) == 1.0
    assert reader.frame.unframed("<think>\n\n</think>\n\nc d") == "c d", "a model that writes the empty thinking itself"
    assert reader.frame.unframed("<think>why</think> c d") != "c d"


def test_a_tokenizer_that_moves_blanks_can_still_be_matched(small: LoadedModel) -> None:
    class Cleaning:
        """Decodes as tokenizers with clean_up_tokenization_spaces do."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return small.tokenizer(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(small.tokenizer, name)

        def batch_decode(self, rows: Any, **kwargs: Any) -> list[str]:
            return [text.replace(" =", "=") for text in small.tokenizer.batch_decode(rows, **kwargs)]

    reader = AnswerReader.of(replace(small, tokenizer=Cleaning()))
    [sample] = encode([Sample("a", "b = c")], "{input} {target}", Cleaning(), reader=reader)
    assert sample.text.strip() == "b= c"
    assert exact_match(reader.text(sample.target), sample.text) == 1.0
    assert survival([Sample("a", "b = c")], Cleaning()).changed == 0, "blanks are not what is learned"


def test_targets_with_unknown_tokens_are_counted_and_refused(small: LoadedModel) -> None:
    data = [Sample("a", "b"), Sample("a", "Überraschung"), Sample("a", "$ %")]
    found = survival(data, small.tokenizer)
    assert (found.targets, found.unknown, found.changed) == (3, 2, 2)
    with pytest.raises(DataError, match=r"my\.jsonl: 2 of 3 targets .*sample 2.*allow_unknown_tokens"):
        check_targets(data, small.tokenizer, "my.jsonl", False)
    assert "2 of 3 targets do not survive" in check_targets(data, small.tokenizer, "my.jsonl", True)
    assert check_targets(data[:1], small.tokenizer, "my.jsonl", False) == ""


def test_a_job_on_unknown_tokens_never_starts(make_spec: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    spec = make_spec()
    Path(spec["train"]).write_text('{"input": "Das Wetter", "target": "schön"}\n' * 8)
    with pytest.raises(DataError, match="8 of 8 targets"):
        run_solo(spec, tmp_path / "run")
    assert run_solo({**spec, "allow_unknown_tokens": True, "max_iterations": 1}, tmp_path / "run").step_index == 1


def test_a_token_without_embedding_is_named_with_its_sample(small: LoadedModel, tokenizer: Any) -> None:
    tokenizer.add_tokens(["zzz"])
    with pytest.raises(DataError, match=r"eval\.jsonl: sample 2 holds the token 'zzz'.*embeddings for \d+ tokens only"):
        encode(
            [Sample("a", "b"), Sample("a", "zzz")], "{input} {target}", tokenizer, rows=small.rows, source="eval.jsonl"
        )


def test_a_pad_token_without_embedding_does_no_harm(
    small: LoadedModel, tokenizer: Any, make_spec: Callable[..., dict[str, Any]]
) -> None:
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    assert tokenizer.pad_token_id >= small.rows
    spec = make_spec()
    samples = encode(read_data(spec).evaluation, spec["template"], small.tokenizer)
    prompt = initial_prompt(spec, small).tensor
    padded = PrefixModel(replace(small, tokenizer=tokenizer))
    assert padded.answers(prompt, samples, 6) == PrefixModel(small).answers(prompt, samples, 6)
    assert padded.losses(prompt, samples) == pytest.approx(PrefixModel(small).losses(prompt, samples))


def test_a_result_that_cannot_be_written_keeps_the_prompt(
    make_tuner: Callable[[dict[str, Any]], Tuner],
    make_spec: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from safetensors.torch import load_file

    from prompttuner.errors import ModelError

    tuner = make_tuner(make_spec())
    tuner.evaluate()
    tuner.train_step()

    def fails(*_: object) -> None:
        raise AttributeError("no num_attention_heads")

    monkeypatch.setattr("prompttuner.engine.result.adapter_config", fails)
    with pytest.raises(ModelError, match=r"cannot be written .*no num_attention_heads.*kept in .*prompt\.safetensors"):
        TunerTask(tuner).write_result(tmp_path, "exhausted")
    assert torch.equal(load_file(tmp_path / "prompt.safetensors")["prompt"], tuner.result_prompt)
    assert not (tmp_path / "result").exists()
