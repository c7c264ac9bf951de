"""For benchmarks/bank_real.py: one job tuned as the product's tuner does it, as cheaply as a busy CPU needs.

The soft prompt's keys and values are computed once a step and shared by all samples of the batch, and an answer counts
as right if every target token is the most likely one after the right ones before it, which is what greedy decoding
gives. ``check`` compares loss and gradient with the product's at the beginning of every benchmark.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from prompttuner.engine.llm.batching import collate
from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.llm.prefix import PrefixModel
from prompttuner.engine.sampling import SampleOrder

__all__ = ["Run", "SharedPrompt", "check", "tune"]

MAX_NORM = 1.0


class SharedPrompt:
    """Losses and gradients of a soft prompt [tokens, width] on samples; its keys and values are computed once."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._decoder = loaded.model.get_decoder()
        self._head = loaded.model.get_output_embeddings()

    def logits(self, prompt: Tensor, samples: Sequence[Encoded]) -> tuple[Tensor, Any]:
        """Logits of the samples' target tokens [tokens, vocabulary], and the batch."""
        batch = collate(samples, 0, self._loaded.device)
        count, width = batch.ids.shape
        length = prompt.shape[0]
        first = DynamicCache(config=self._loaded.model.config)
        self._decoder(inputs_embeds=prompt[None], past_key_values=first, use_cache=True)
        shared = DynamicCache(config=self._loaded.model.config)
        for number, layer in enumerate(first.layers):
            shared.update(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1), number)
        places = torch.arange(length, length + width)[None].expand(count, -1)
        hidden = self._decoder(
            input_ids=batch.ids, past_key_values=shared, use_cache=True, position_ids=places
        ).last_hidden_state
        return self._head(hidden[batch.rows, batch.columns]), batch

    def gradient(self, prompt: Tensor, samples: Sequence[Encoded]) -> tuple[float, Tensor]:
        """Summed loss, and its gradient by the prompt."""
        leaf = prompt.detach().clone().requires_grad_()
        logits, batch = self.logits(leaf, samples)
        loss = functional.cross_entropy(logits.float(), batch.targets, reduction="sum")
        return loss.item(), torch.autograd.grad(loss, leaf)[0]

    @torch.no_grad()
    def score(self, prompt: Tensor, samples: Sequence[Encoded]) -> tuple[float, float]:
        """(mean loss of a target token, share of samples answered rightly)."""
        logits, batch = self.logits(prompt, samples)
        loss = functional.cross_entropy(logits.float(), batch.targets).item()
        right, start, hits = logits.argmax(-1) == batch.targets, 0, 0
        for sample in samples:
            hits += bool(right[start : start + len(sample.target)].all())
            start += len(sample.target)
        return loss, hits / len(samples)


@dataclass
class Run:
    """How one start fared."""

    ita: int | None = None
    prompt: Tensor | None = None
    """At the end."""
    evaluations: list[tuple[int, float, float]] = field(default_factory=list)
    """(iterations, loss, exact match)."""
    train_cpu_s: float = 0.0
    steps: int = 0


def tune(
    loaded: LoadedModel,
    start: Tensor,
    train: Sequence[Encoded],
    evaluation: Sequence[Encoded],
    *,
    seed: int,
    batch: int,
    rate: float,
    every: int,
    cap: int,
    target: float,
) -> Run:
    """Tune a prompt to an exact match of ``target`` on ``evaluation``, or for ``cap`` iterations."""
    model, order, run = SharedPrompt(loaded), SampleOrder(len(train), batch, seed), Run()
    prompt = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([prompt], lr=rate, weight_decay=0.0, foreach=False)
    for step in range(cap + 1):
        if step % every == 0 or step == cap:
            loss, match = model.score(prompt.detach(), evaluation)
            run.evaluations.append((step, round(loss, 4), match))
            if match >= target:
                run.ita = step
                break
        if step == cap:
            break
        begun = time.process_time()
        samples = [train[i] for i in order.batch(step)]
        _, gradient = model.gradient(prompt, samples)
        prompt.grad = gradient / sum(len(sample.target) for sample in samples)
        torch.nn.utils.clip_grad_norm_([prompt], MAX_NORM, foreach=False)
        optimiser.step()
        run.train_cpu_s += time.process_time() - begun
        run.steps = step + 1
    run.prompt = prompt.detach().clone()
    return run


def check(loaded: LoadedModel, prompt: Tensor, samples: Sequence[Encoded]) -> float:
    """Relative difference of the gradient from the product's.

    Raises:
        AssertionError: above 1e-4; nothing measured here would then tell anything of the product.
    """
    loss, gradient = SharedPrompt(loaded).gradient(prompt, samples)
    theirs, expected = PrefixModel(loaded).gradient(prompt, samples)
    off = float((gradient - expected).norm() / expected.norm())
    assert off < 1e-4, f"gradient is off by {off:.2g}"
    assert abs(loss - theirs) < 1e-4 * abs(theirs), f"loss {loss} instead of {theirs}"
    return off
