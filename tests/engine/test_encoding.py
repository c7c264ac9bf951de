"""Templates, chat templates, and metrics of answers."""

from __future__ import annotations

import copy

import pytest

from prompttuner.engine.llm.encoding import encode, split_text
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.metrics import exact_match, rouge_l
from prompttuner.errors import DataError, ModelError
from prompttuner.spec.data import Sample

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def test_blank_between_input_and_target_belongs_to_the_target(small: LoadedModel) -> None:
    assert split_text(Sample("x", "y"), "{input} {target}", small.tokenizer) == ("x", " y")
    assert split_text(Sample("x", "y"), "Q: {input}\nA: {target}!", small.tokenizer) == ("Q: x\nA:", " y!")


def test_target_ends_with_the_end_of_text_token(small: LoadedModel) -> None:
    [item] = encode([Sample("a b =", "B A")], "{input} {target}", small.tokenizer)
    assert small.tokenizer.decode(item.prompt) == "a b ="
    assert item.target[-1] == small.tokenizer.eos_token_id
    assert small.tokenizer.decode(item.target, skip_special_tokens=True) == "B A"
    assert item.text == "B A"


def test_chat_template_splits_before_the_answer(small: LoadedModel) -> None:
    tokenizer = copy.deepcopy(small.tokenizer)
    tokenizer.chat_template = CHATML
    head, tail = split_text(Sample("a b", "B"), "chat", tokenizer)
    assert head == "<|user|> a b <|end|>\n<|assistant|> "
    assert tail == "B <|end|>"


def test_chat_without_a_chat_template_is_an_error(small: LoadedModel) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        encode([Sample("a", "b")], "chat", small.tokenizer)


def test_target_without_tokens_is_named(small: LoadedModel) -> None:
    with pytest.raises(DataError, match="sample 2"):
        encode([Sample("a", "b"), Sample("a", " ")], "{input} {target}", small.tokenizer)


def test_metrics_of_answers() -> None:
    assert exact_match(" B A\n", "B A") == 1.0
    assert exact_match("B", "B A") == 0.0
    assert rouge_l("the cat sat", "the cat sat") == 1.0
    assert rouge_l("the cat", "the dog") == pytest.approx(0.5)
