"""Greedy answers behind a soft prompt: by the model's own `generate`, or from keys and values that are there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.head import TargetHead
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.llm.shared import cache_of, layer_with

__all__ = ["Answer", "continue_answers", "generate", "next_rows"]


@dataclass
class Answer:
    """An answer that is being written."""

    row: int
    """Its sample's row in the cache."""
    known: int
    """Positions before the last written token, soft prompt included; their keys and values are in the cache."""
    written: list[int]
    """Tokens so far, one at least."""
    room: int
    """Tokens that may still be written."""
    hopeless: Callable[[list[int]], bool] = field(default=lambda _: False)
    """Whether what follows cannot matter any more."""

    def ended(self, ends: Collection[int]) -> bool:
        """Whether nothing more is to be written."""
        return self.room <= 0 or self.written[-1] in ends or self.hopeless(self.written)


@torch.no_grad()
def continue_answers(
    loaded: LoadedModel, head: TargetHead, cache: DynamicCache, answers: Sequence[Answer], ends: Collection[int]
) -> None:
    """Write on, token by token, all answers together, until each has ended.

    Args:
        loaded: the frozen model.
        head: its head.
        cache: keys and values [samples, heads, positions, width] of a pass over prompt, inputs and targets, padded on
            the right; of no layer that forgets.
        answers: what is written on, in place.
        ends: tokens after which an answer is complete.
    """
    alive = [answer for answer in answers if not answer.ended(ends)]
    if not alive:
        return
    cache, mask = _aligned(cache, alive)
    while alive:
        rows, mask = next_rows(loaded, head, cache, alive, mask)
        for answer, token in zip(alive, head.best(rows).tolist(), strict=True):
            answer.written.append(token)
            answer.known += 1
            answer.room -= 1
        kept = [index for index, answer in enumerate(alive) if not answer.ended(ends)]
        if len(kept) < len(alive):
            alive = [alive[index] for index in kept]
            chosen = torch.tensor(kept, device=mask.device, dtype=torch.int64)
            cache, mask = _picked(cache, chosen), mask[chosen]


def next_rows(
    loaded: LoadedModel, head: TargetHead, cache: DynamicCache, answers: Sequence[Answer], mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The head's input after each answer's last token [answers, hidden], and the mask with that token."""
    device = mask.device
    tokens = torch.tensor([[answer.written[-1]] for answer in answers], device=device)
    mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    inputs: dict[str, Any] = {"inputs_embeds": loaded.model.get_input_embeddings()(tokens)}
    if "position_ids" in inspect.signature(loaded.model.forward).parameters:
        inputs["position_ids"] = torch.tensor([[answer.known] for answer in answers], device=device)
    places = torch.arange(len(answers), device=device)
    return head.run(places, attention_mask=mask, past_key_values=cache, use_cache=True, **inputs), mask


def _aligned(cache: DynamicCache, answers: Sequence[Answer]) -> tuple[DynamicCache, torch.Tensor]:
    """The answers' rows, known positions moved to the right end, and the attention mask [answers, positions]."""
    device = cache.layers[0].keys.device
    width = max(answer.known for answer in answers)
    rows = torch.tensor([answer.row for answer in answers], device=device)
    shift = torch.tensor([[width - answer.known] for answer in answers], device=device)
    places = torch.arange(width, device=device)[None] - shift
    mask = (places >= 0).to(torch.int64)
    index = places.clamp(min=0)[:, None, :, None]

    def move(part: torch.Tensor) -> torch.Tensor:
        part = part[rows]
        return part.gather(2, index.expand(-1, part.shape[1], -1, part.shape[3]))

    layers = [layer_with(layer, move(layer.keys), move(layer.values), width) for layer in cache.layers]
    return cache_of(cache, layers), mask


def _picked(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    return cache_of(cache, [layer_with(layer, layer.keys[rows], layer.values[rows]) for layer in cache.layers])


@torch.no_grad()
def generate(
    loaded: LoadedModel,
    pad: int,
    prompt: torch.Tensor,
    samples: Sequence[Encoded],
    max_new_tokens: int,
    ends: Collection[int],
) -> torch.Tensor:
    """Greedy answers by the model's own `generate`, int64 [samples, up to max_new_tokens]; padding after an end token.

    Padded on the left, before the soft prompt: mask and positions then are what an unpadded sample would have.
    """
    width = max(len(sample.prompt) for sample in samples)
    length, device = prompt.shape[0], loaded.device
    embed = loaded.model.get_input_embeddings()
    ids = torch.full((len(samples), width), pad, dtype=torch.int64, device=device)
    mask = torch.zeros((len(samples), length + width), dtype=torch.int64, device=device)
    weight = embed.weight
    embeds = torch.zeros((len(samples), length + width, weight.shape[1]), dtype=weight.dtype, device=device)
    for index, sample in enumerate(samples):
        count = len(sample.prompt)
        ids[index, width - count :] = torch.tensor(sample.prompt, dtype=torch.int64)
        mask[index, width - count :] = 1
    given = embed(ids)
    for index, sample in enumerate(samples):
        start = width - len(sample.prompt)
        embeds[index, start : start + length] = prompt.to(weight.dtype)
        embeds[index, start + length :] = given[index, start:]
    out: torch.Tensor = loaded.model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
    )
    return out
