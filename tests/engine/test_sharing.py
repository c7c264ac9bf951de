"""The soft prompt's pass, shared by all samples of a step: exact where it is used, left out where it would not be."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner import smallmodel
from prompttuner.engine.llm import shared
from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.llm.prefix import PrefixModel
from prompttuner.engine.metrics import cannot_match
from prompttuner.engine.state import pack, unpack
from prompttuner.engine.tuner import Tuner
from prompttuner.worker.task import agree_on_state

LENGTH = 5
LLAMA: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


class Tokenizer:
    pad_token_id, eos_token_id, unk_token_id = 0, 1, None


def loaded_from(config: Any) -> LoadedModel:
    torch.manual_seed(7)
    config.dtype = "float32"
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # random enough that a wrong position or mask changes the loss
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return LoadedModel(model, Tokenizer(), "tiny", torch.float32, torch.device("cpu"))


def sample(given: int, learned: int) -> Encoded:
    generator = torch.Generator().manual_seed(given)
    tokens = torch.randint(3, 50, (given + learned - 1,), generator=generator).tolist()
    return Encoded(tokens[:given], [*tokens[given:], 1], "")


def prompt_of(loaded: LoadedModel, length: int = LENGTH) -> torch.Tensor:
    return torch.randn((length, loaded.hidden), generator=torch.Generator().manual_seed(2))


def test_a_job_on_the_small_model_shares_and_ends_as_one_that_does_not(
    make_spec: Callable[..., dict[str, Any]], make_tuner: Callable[..., Tuner]
) -> None:
    spec = make_spec(target={"metric": "exact_match", "op": ">=", "value": 1.0}, max_iterations=8)
    tuners = [make_tuner(spec), make_tuner(spec)]
    tuners[1].share(False)
    for tuner in tuners:
        while not tuner.finished:
            tuner.evaluate() if tuner.evaluation_due else tuner.train_step()
    assert tuners[0].state().meta["sharing"]
    rows = [[(e.metric, e.loss) for e in tuner.progress.evaluations] for tuner in tuners]
    assert [metric for metric, _ in rows[0]] == [metric for metric, _ in rows[1]]
    assert [loss for _, loss in rows[0]] == pytest.approx([loss for _, loss in rows[1]], rel=1e-4)


def test_states_say_whether_a_job_shares_and_those_of_before_go_on_without(
    make_spec: Callable[..., dict[str, Any]], make_tuner: Callable[..., Tuner]
) -> None:
    state = make_tuner(make_spec()).state()
    assert state.meta["sharing"]
    newcomer, older = make_tuner(make_spec()), make_tuner(make_spec())
    newcomer.load_state(unpack(pack(state)))
    assert newcomer.state().meta["sharing"]
    del state.meta["sharing"]
    older.load_state(unpack(pack(state)))
    assert older.state().meta["sharing"] is False


class Pair:
    """One of two members; the other tells its position as ``told``."""

    rank, world = 0, 2

    def __init__(self, told: float) -> None:
        self.told = told

    def all_reduce_(self, tensor: torch.Tensor) -> None:
        tensor[1] = self.told

    def broadcast_(self, tensor: torch.Tensor, source: int) -> None:
        assert source == 0


def test_beside_a_member_of_the_build_before_nothing_is_shared(
    make_spec: Callable[..., dict[str, Any]], make_tuner: Callable[..., Tuner]
) -> None:
    class Task:
        position = 4

        def pack(self) -> bytes:
            return b"state"

    told_by_old_and_new = (5.0, 0.0), (5.25, 0.25)
    for told, alike in zip(told_by_old_and_new, (False, True), strict=True):
        for position in told:
            source, state, found = agree_on_state(Pair(position), Task())  # type: ignore[arg-type]
            assert (source, state, found) == (0, None, alike)
    tuner = make_tuner(make_spec())
    tuner.share(False)
    sums: list[int] = []

    class Watched:
        rank, world = 0, 1

        def all_reduce_(self, tensor: torch.Tensor) -> None:
            sums.append(len(tensor))

    tuner.train_step(Watched())
    tuner.share(True)
    tuner.train_step(Watched())
    assert sums[0] == tuner.prompt.numel() + 3, "what the build before sums: gradient, loss, tokens, samples"
    assert sums[1] > sums[0]


@pytest.mark.parametrize("metric", ["loss", "exact_match"])
def test_members_that_share_end_with_the_prompt_of_a_single_one_to_the_last_bit(
    make_spec: Callable[..., dict[str, Any]], make_tuner: Callable[..., Tuner], metric: str
) -> None:
    """Shares of three members, summed in another order: float64 sums, rounded once, are the same. Only where matrix
    kernels do not depend on the size of a batch, as on the CPUs that this was written on; else they are near."""
    op = "<=" if metric == "loss" else ">="
    spec = make_spec(batch_size=7, target={"metric": metric, "op": op, "value": 0.0 if metric == "loss" else 1.0})
    tuner = make_tuner(spec)
    engine, prompt = tuner._prefix, tuner.prompt
    samples = [tuner._train[index] for index in tuner.sample_ids(0)]
    widths = engine.widths(len(prompt), samples)
    whole = engine.sums(prompt, samples, widths)
    parts = [engine.sums(prompt, samples[rank::3], widths[rank::3]) for rank in (2, 0, 1)]
    summed = parts[0].gradient + parts[1].gradient + parts[2].gradient
    alone = engine.gradient_of(prompt, whole.gradient, whole.shared)
    together = engine.gradient_of(prompt, summed, parts[0].shared)
    assert engine.sharing
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-9)
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss, rel=1e-9)


def test_a_long_sample_beyond_the_switch_of_long_context_positions_is_not_shared() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = transformers.Phi3Config(
        **LLAMA, pad_token_id=0, rope_parameters={**rope, "original_max_position_embeddings": 24}
    )
    config.original_max_position_embeddings = 24
    loaded = loaded_from(config)
    prompt = prompt_of(loaded)
    assert PrefixModel(loaded).decide(prompt, [sample(6, 3), sample(9, 3)])
    assert not PrefixModel(loaded).decide(prompt, [sample(6, 3), sample(22, 3)])
    assert not PrefixModel(loaded).decide(prompt, [sample(6, 3), sample(9, 3)], longest_answer=20)


@pytest.mark.parametrize(
    "config",
    [
        lambda: transformers.MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=8),
        lambda: transformers.JambaConfig(
            **{key: value for key, value in LLAMA.items() if key != "max_position_embeddings"},
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=2,
            use_mamba_kernels=False,
        ),
    ],
    ids=["recurrent", "hybrid"],
)
def test_models_that_keep_more_than_keys_and_values_take_the_plain_path(config: Callable[[], Any]) -> None:
    loaded = loaded_from(config())
    engine, prompt, batch = PrefixModel(loaded), prompt_of(loaded), [sample(6, 3), sample(9, 2)]
    assert not engine.decide(prompt, batch)
    loss, gradient = engine.gradient(prompt, batch)
    assert loss == pytest.approx(engine.losses(prompt, batch), rel=1e-6)
    assert gradient.abs().sum() > 0


def test_beyond_a_stated_size_the_plain_path_is_taken(small: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompt = PrefixModel(small), prompt_of(small)
    batch = [Encoded([20, 21], [22, 2], ""), Encoded([20], [22, 2], "")]
    monkeypatch.setattr(shared, "MAX_SHARED", 10)
    assert not engine.decide(prompt, batch)


def test_active_dropout_takes_the_plain_path() -> None:
    loaded = loaded_from(transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    loaded.model.train()
    assert not PrefixModel(loaded).decide(prompt_of(loaded), [sample(6, 3), sample(9, 2)])


PEAK = """
import resource, torch, transformers
from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.llm.prefix import PrefixModel
torch.set_num_threads(1)
config = transformers.LlamaConfig(
    vocab_size=262144, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
    max_position_embeddings=512, tie_word_embeddings=True,
)
model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
tokenizer = type("Tokenizer", (), {"pad_token_id": 0, "eos_token_id": 1})()
engine = PrefixModel(LoadedModel(model, tokenizer, "tiny", torch.float32, torch.device("cpu")))
prompt = torch.randn(4, 16)
def peak(samples, targets):
    engine.gradient(prompt, [Encoded([5, 6], [7] * (targets - 1) + [1], "")] * samples)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
first = peak(1, 2)
print(peak(2, 122) - first)
"""


def test_logits_of_a_large_vocabulary_never_exist_at_once() -> None:
    """2 samples of 122 targets and a vocabulary of 262,144: all logits would take 256 MB, with their gradients 740."""
    out = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=300)
    chunk = 4 * (1 << 24)
    assert int(out.stdout) <= 1.2 * chunk + 20e6, "and the activations of 248 tokens"


@settings(deadline=None, max_examples=100)
@given(text=st.text(min_size=1, max_size=12), data=st.data())
def test_an_answer_is_given_up_only_if_nothing_can_make_it_a_match(text: str, data: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(smallmodel.path())
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids)
    begin = tokenizer.decode(ids[: data.draw(st.integers(0, len(ids)))])
    assert not cannot_match(begin, whole)
    assert cannot_match("x" + whole.strip(), whole)


def test_answers_are_those_of_the_model_s_own_generate(
    make_spec: Callable[..., dict[str, Any]], make_tuner: Callable[..., Tuner]
) -> None:
    tuner = make_tuner(
        make_spec("reverse+next2", initial_prompt="text: reverse the letters then shift up two :", prompt_length=None)
    )
    plain, engine = copy.copy(tuner._prefix), tuner._prefix
    plain.sharing = False
    samples = [*tuner._eval, *(s._replace(target=s.target[1:]) for s in tuner._eval), Encoded([], [3, 2], "")]
    found = engine.answers(tuner.prompt, samples, 9)
    assert engine.sharing
    assert found == plain.answers(tuner.prompt, samples, 9)
    assert json.dumps(found)
