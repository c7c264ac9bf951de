"""Every model family: logits, losses and answers behind a soft prompt are those of PEFT's own prompt tuning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model

from prompttuner.engine.llm.batching import collate
from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.llm.prefix import PrefixModel

VOCABULARY, LENGTH = 50, 5
COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
LLAMA = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "opt": lambda: transformers.OPTConfig(
        **COMMON,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**{k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}),
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**LLAMA, sliding_window=8),
    "gemma": lambda: transformers.GemmaConfig(**LLAMA, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(**LLAMA, head_dim=8, sliding_window=8, final_logit_softcapping=2.0),
    "gemma3": lambda: transformers.Gemma3TextConfig(**LLAMA, head_dim=8, sliding_window=8),
    "phi": lambda: transformers.PhiConfig(**LLAMA),
    "phi3": lambda: transformers.Phi3Config(**LLAMA),
}


class Tokenizer:
    """As much of a tokenizer as running a model needs; ``decode`` shows the ids."""

    pad_token_id, eos_token_id, unk_token_id = 0, 1, None

    def batch_decode(self, rows: Any, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(str(token) for token in row.tolist() if token > 2) for row in rows]


@pytest.fixture(params=sorted(FAMILIES))
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    torch.manual_seed(7)
    config = FAMILIES[request.param]()
    config.dtype = "float32"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # random enough that a wrong position or mask changes the logits
        parameter.data += 0.1 * torch.randn(parameter.shape)
    model.requires_grad_(False)
    return LoadedModel(model, Tokenizer(), request.param, torch.float32, torch.device("cpu"))


def samples() -> list[Encoded]:
    """Lengths differ in prompt and target; one prompt is empty, one sample is longer than a sliding window."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    return [
        Encoded(tokens(given), [*tokens(learned), 1], "")
        for given, learned in ((4, 2), (1, 5), (14, 3), (0, 2), (7, 1))
    ]


def peft_model(loaded: LoadedModel, prompt: torch.Tensor) -> Any:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, token_dim=loaded.hidden)
    wrapped = get_peft_model(loaded.model, config).eval()
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(prompt)
    return wrapped


def peft_labels(batch: list[Encoded], width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.zeros((len(batch), width), dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, sample in enumerate(batch):
        ids[row, : sample.length] = torch.tensor([*sample.prompt, *sample.target])
        mask[row, : sample.length] = 1
        labels[row, len(sample.prompt) : sample.length] = torch.tensor(sample.target)
    return ids, mask, labels


def test_logits_equal_those_of_peft(loaded: LoadedModel) -> None:
    batch = samples()
    prompt = torch.randn((LENGTH, loaded.hidden), generator=torch.Generator().manual_seed(2))
    collated = collate(batch, 0, loaded.device)
    ours = PrefixModel(loaded).target_logits(prompt, collated)
    ids, mask, _ = peft_labels(batch, max(sample.length for sample in batch))
    theirs = peft_model(loaded, prompt)(input_ids=ids, attention_mask=mask).logits
    wanted = theirs[collated.rows, LENGTH + collated.columns]
    assert ours.shape == (sum(len(sample.target) for sample in batch), VOCABULARY)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sharing", [False, True])
def test_gradient_equals_that_of_peft_whatever_the_micro_batches(loaded: LoadedModel, sharing: bool) -> None:
    batch = samples()
    prompt = torch.randn((LENGTH, loaded.hidden), generator=torch.Generator().manual_seed(2))
    engine = PrefixModel(loaded)
    assert engine.decide(prompt, batch), "every one of these families can share the prompt's pass"
    engine.sharing = sharing
    engine._max_tokens = 30  # forces several micro-batches
    assert len(engine._split(prompt, batch, None)) > 1
    total, gradient = engine.gradient(prompt, batch)
    wrapped = peft_model(loaded, prompt.detach())
    ids, mask, labels = peft_labels(batch, max(sample.length for sample in batch))
    loss = wrapped(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    count = sum(len(sample.target) for sample in batch)
    assert total / count == pytest.approx(loss.item(), rel=1e-5)
    theirs = wrapped.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close((gradient / count).float(), theirs, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


@pytest.mark.parametrize("sharing", [False, True])
def test_batched_answers_equal_those_of_peft_one_by_one(loaded: LoadedModel, sharing: bool) -> None:
    batch = [sample for sample in samples() if sample.prompt]
    prompt = torch.randn((LENGTH, loaded.hidden), generator=torch.Generator().manual_seed(2))
    engine = PrefixModel(loaded)
    engine.sharing = sharing
    ours = engine.answers(prompt, batch, max_new_tokens=6)
    wrapped = peft_model(loaded, prompt)
    theirs = []
    for sample in batch:
        ids = torch.tensor([sample.prompt])
        out = wrapped.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        theirs += Tokenizer().batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    assert ours == theirs
    assert any(ours)
