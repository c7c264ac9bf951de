"""Scores, features and the race on real (tiny) models: equal to a plain forward pass, whatever the family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from prompttuner import smallmodel
from prompttuner.bank.lookup.features import compute_features, layer_features, parse_recipe
from prompttuner.bank.lookup.fitting import fit_length
from prompttuner.bank.lookup.race import RaceSettings, race, race_cost
from prompttuner.bank.lookup.scoring import Scorer
from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.engine.llm.prefix import PrefixModel

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}


def tiny(family: str) -> LoadedModel:
    torch.manual_seed(0)
    configs = {
        "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=1, intermediate_size=64),
        "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50),
        "opt": lambda: transformers.OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32),
        "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZES, intermediate_size=64),
        "qwen2": lambda: transformers.Qwen2Config(**SIZES, num_key_value_heads=1, intermediate_size=64),
        "mamba2": lambda: transformers.Mamba2Config(
            hidden_size=32, num_hidden_layers=2, vocab_size=50, num_heads=4, head_dim=16, state_size=8, n_groups=1,
            expand=2, chunk_size=8,
        ),
        "jamba": lambda: transformers.JambaConfig(
            **SIZES, num_key_value_heads=1, intermediate_size=64, attn_layer_period=2, attn_layer_offset=1,
            num_experts=2, mamba_d_state=8,
        ),
        "lfm2": lambda: transformers.Lfm2Config(
            **SIZES, num_key_value_heads=1, intermediate_size=64, layer_types=["conv", "full_attention"]
        ),
        "qwen3-next": lambda: transformers.Qwen3NextConfig(
            **SIZES, num_key_value_heads=1, head_dim=16, intermediate_size=64, num_experts=2, num_experts_per_tok=1,
            layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, linear_num_value_heads=2,
            linear_key_head_dim=8, linear_value_head_dim=8, moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        ),
        "gemma3": lambda: transformers.Gemma3TextConfig(
            **SIZES, num_key_value_heads=1, head_dim=16, intermediate_size=64, sliding_window=4
        ),
        "gemma2": lambda: transformers.Gemma2Config(**SIZES, num_key_value_heads=1, intermediate_size=64, head_dim=16),
    }  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(configs[family]()).eval().requires_grad_(False)
    return LoadedModel(model, None, family, torch.float32, torch.device("cpu"))


def samples(count: int, seed: int = 0) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    sizes = [(int(rng.integers(1, 6)), int(rng.integers(1, 4))) for _ in range(count)]
    return [Encoded(rng.integers(5, 50, a).tolist(), rng.integers(5, 50, b).tolist(), "") for a, b in sizes]


def prompts(count: int, width: int = 32) -> list[torch.Tensor]:
    return [torch.randn(2 + n % 3, width, generator=torch.Generator().manual_seed(n)) for n in range(count)]


@torch.no_grad()
def one_loss(loaded: LoadedModel, prompt: torch.Tensor, sample: Encoded) -> float:
    ids = torch.tensor([sample.prompt + sample.target])
    embedded = torch.cat([prompt[None], loaded.model.get_input_embeddings()(ids)], 1)
    logits = loaded.model(inputs_embeds=embedded).logits[0, len(prompt) + len(sample.prompt) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(sample.target)))


HYBRID = ["mamba2", "jamba", "lfm2", "qwen3-next"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt-neox", "qwen2", "gemma2", "gemma3", *HYBRID])
@pytest.mark.parametrize("reuse", [True, False])
def test_scores_equal_a_plain_forward_pass(family: str, reuse: bool) -> None:
    loaded, data, starts = tiny(family), samples(5), prompts(4)
    scorer = Scorer(loaded, data, lambda n: starts[n], reuse=reuse, max_tokens=40)
    expected = np.array([[one_loss(loaded, p, s) for s in data] for p in starts])
    assert scorer(range(4), range(5)) == pytest.approx(expected, abs=1e-4)
    assert scorer([2, 0], [4, 1]) == pytest.approx(expected[np.ix_([2, 0], [4, 1])], abs=1e-4)


def test_kept_keys_and_values_are_really_used(caplog: pytest.LogCaptureFixture) -> None:
    loaded, starts = tiny("llama"), prompts(2)
    scorer = Scorer(loaded, samples(3), lambda n: starts[n])
    first = scorer([0, 1], [0])
    starts[0] = starts[0] + 1.0  # a prefix that is kept is not computed again
    assert scorer([0, 1], [0]) == pytest.approx(first)
    assert not caplog.records


def test_a_refused_candidate_scores_infinite() -> None:
    starts = prompts(2)
    scorer = Scorer(tiny("llama"), samples(2), lambda n: starts[n] if n else None)
    losses = scorer([0, 1], [0, 1])
    assert np.isinf(losses[0]).all() and np.isfinite(losses[1]).all()


def test_samples_without_an_input_are_scored_from_their_second_token() -> None:
    loaded, start = tiny("llama"), prompts(1)[0]
    with_input, without = Encoded([7], [8, 9], ""), Encoded([], [7, 8, 9], "")
    losses = Scorer(loaded, [with_input, without], lambda _: start)([0], [0, 1])
    assert losses[0, 0] == pytest.approx(losses[0, 1])


def test_features_do_not_depend_on_the_company() -> None:
    loaded, starts = tiny("llama"), prompts(5)
    together = compute_features(loaded, starts, "depth=0.5,pooling=mean")
    alone = np.vstack([compute_features(loaded, [p], "depth=0.5,pooling=mean") for p in starts])
    assert together == pytest.approx(alone, abs=1e-5)
    assert together.shape == (5, 32)


def test_layer_zero_is_the_prompt_itself() -> None:
    starts = prompts(3)
    found = layer_features(tiny("llama"), starts, [0], "mean")[0]
    assert found == pytest.approx(np.stack([p.mean(0).numpy() for p in starts]), abs=1e-6)
    last = layer_features(tiny("llama"), starts, [0], "last")[0]
    assert last == pytest.approx(np.stack([p[-1].numpy() for p in starts]), abs=1e-6)


@pytest.mark.parametrize("recipe", ["depth=2,pooling=mean", "depth=0.5,pooling=max", "depth=x,pooling=mean"])
def test_unknown_recipes_are_refused(recipe: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_recipe(recipe)


def test_fitting_keeps_the_end_of_a_prompt() -> None:
    prompt = torch.arange(6.0).view(3, 2) + 1
    assert torch.equal(fit_length(prompt, 2), prompt[1:])
    assert torch.equal(fit_length(prompt, 5)[2:], prompt) and not fit_length(prompt, 5)[:2].any()
    assert fit_length(prompt, None) is prompt


def test_a_race_lowers_losses_and_leaves_the_starts_alone() -> None:
    loaded = load_model(str(smallmodel.path()))
    data = samples(12)
    starts = [0.1 * torch.randn(4, loaded.hidden, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    copies = [start.clone() for start in starts]
    tokens = sum(len(s.target) for s in data)
    before = [PrefixModel(loaded).losses(start, data) / tokens for start in starts]
    settings = RaceSettings(5, (2, 3), 12)
    batches = [data[:6], data[6:]] * 3
    result = race(loaded, starts, before, batches, data, learning_rate=0.03, settings=settings)
    assert all(after < first for after, first in zip(result.losses, before, strict=True))
    assert sorted(result.order) == [0, 1, 2, 3, 4]
    assert result.rounds == [{"candidates": 5, "steps": 2}, {"candidates": 3, "steps": 3}]
    assert result.evaluations == race_cost(settings, 5, 12, 6) == 5 * (2 * 6 * 3 + 12) + 3 * (3 * 6 * 3 + 12)
    assert result.losses[result.order[0]] == min(result.losses[p] for p in result.order[:3])
    assert all(torch.equal(a, b) for a, b in zip(starts, copies, strict=True))


def test_a_prompt_that_fits_as_it_is_wins_even_if_tuning_spoils_it() -> None:
    loaded = load_model(str(smallmodel.path()))
    starts = [torch.randn(4, loaded.hidden, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    result = race(
        loaded, starts, [9.0, 1e-9], [samples(6)], samples(6), learning_rate=1.0, settings=RaceSettings(2, (1,), 6)
    )
    assert result.order == [1, 0] and result.losses[1] == 1e-9
