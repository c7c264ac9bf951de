"""Too little memory: micro-batches are halved, and the gradient stays right; what can not work says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.llm.prefix import PrefixModel
from prompttuner.engine.tuner import Tuner
from prompttuner.errors import ModelError


def starve(engine: PrefixModel, monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let passes over more than ``most`` samples fail as a GPU without memory does, after half of the work is done."""
    whole = engine.forward
    sizes: list[int] = []

    def forward(behind: Any, samples: Sequence[Encoded], width: int, *, train: bool) -> Any:
        sizes.append(len(samples))
        done = whole(behind, samples, width, train=train)
        if len(samples) > most:
            torch.autograd.grad(done.rows.sum(), done.leaves)  # a gradient that must not count
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return done

    monkeypatch.setattr(engine, "forward", forward)
    return sizes


def test_halved_micro_batches_give_the_same_step(
    make_spec: Callable[..., dict[str, Any]], make_tuner: Callable[..., Tuner], monkeypatch: pytest.MonkeyPatch
) -> None:
    free, starved = make_tuner(make_spec()), make_tuner(make_spec())
    sizes = starve(starved._prefix, monkeypatch, most=2)
    outcomes = [tuner.train_step() for tuner in (free, starved)]
    assert max(sizes) > 2
    assert outcomes[0].loss == pytest.approx(outcomes[1].loss, rel=1e-6)
    torch.testing.assert_close(free.prompt, starved.prompt, rtol=0, atol=1e-5)
    sizes.clear()
    starved.train_step()
    assert max(sizes) <= 2  # it has learned


def test_a_single_sample_that_does_not_fit_is_a_clear_error(
    make_spec: Callable[..., dict[str, Any]], make_tuner: Callable[..., Tuner], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = make_tuner(make_spec())
    starve(tuner._prefix, monkeypatch, most=0)
    with pytest.raises(ModelError, match=r"not enough memory to tune on one sample of \d+ tokens"):
        tuner.train_step()
    assert tuner.step_index == 0


def test_model_without_input_embeddings_is_refused(small: LoadedModel) -> None:
    class Odd(torch.nn.Module):
        def get_input_embeddings(self) -> Any:
            return small.model.get_input_embeddings()

        get_output_embeddings = get_input_embeddings

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    odd = LoadedModel(Odd(), small.tokenizer, "odd", torch.float32, torch.device("cpu"))
    with pytest.raises(ModelError, match="takes no input embeddings"):
        PrefixModel(odd)
