"""A soft prompt's keys and values, computed once a step for all its samples."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from prompttuner.engine.llm.head import TargetHead
from prompttuner.engine.llm.model import LoadedModel

__all__ = ["MAX_SHARED", "NotShareable", "PromptPass"]

MAX_SHARED = 1 << 23
"""Most keys and values of a prompt (all layers) whose gradients are summed over members: 64 MiB in float64. 20 tokens
of a 7B model without grouped queries take 40 MiB. Beyond it each sample computes the prompt anew."""


class NotShareable(Exception):
    """This model keeps something other than keys and values, or too many of them."""


class PromptPass:
    """The model's pass over a soft prompt alone.

    Samples attend to copies of its keys and values. Their gradients are summed over samples (and members) outside, in
    float64; `backward` then takes the sum back to the prompt, once.
    """

    def __init__(self, loaded: LoadedModel, head: TargetHead, prompt: torch.Tensor, *, train: bool) -> None:
        """Run it.

        Args:
            loaded: the frozen model.
            head: its head.
            prompt: [length, hidden].
            train: whether `backward` will be called.

        Raises:
            NotShareable: the model's cache is none of plain keys and values.
        """
        self._leaf = prompt.detach().clone().requires_grad_(train)
        self.length = prompt.shape[0]
        cache = DynamicCache(config=loaded.model.config)
        with torch.set_grad_enabled(train):
            given = self._leaf.to(loaded.model.get_input_embeddings().weight.dtype)[None]
            nowhere = torch.zeros(1, dtype=torch.int64, device=given.device)
            head.run(nowhere, inputs_embeds=given, past_key_values=cache, use_cache=True)
        if not all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in cache.layers):
            raise NotShareable("its cache holds more than keys and values")
        self._cache = cache
        self.tensors = [part for layer in cache.layers for part in _parts(layer)]
        """Keys and values by layer, each [1, heads, length, width]."""
        if any(part.shape[0] != 1 for part in self.tensors):
            raise NotShareable("its cache holds more than keys and values")
        self.size = sum(part.numel() for part in self.tensors)
        if self.size > MAX_SHARED:
            raise NotShareable(f"its prompt has {self.size} keys and values, more than {MAX_SHARED} are not shared")

    @property
    def window(self) -> float:
        """Tokens after which some layer forgets; infinite where none does."""
        sliding = [layer.sliding_window for layer in self._cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
        return min(sliding, default=math.inf)

    def fork(self, count: int, *, train: bool) -> tuple[DynamicCache, list[torch.Tensor]]:
        """A cache for ``count`` samples, and the leaves in it whose gradients are those of each sample's copy."""
        leaves = [part.detach().expand(count, -1, -1, -1).requires_grad_(train) for part in self.tensors]
        pairs = zip(leaves[::2], leaves[1::2], strict=True)
        layers = [layer_with(layer, *pair) for layer, pair in zip(self._cache.layers, pairs, strict=True)]
        return cache_of(self._cache, layers), leaves

    def backward(self, flat: torch.Tensor) -> torch.Tensor:
        """The gradient [length, hidden] by the prompt, float64, from that by keys and values (float64 [size])."""
        sizes = [part.numel() for part in self.tensors]
        pairs = [
            (part, given.view(part.shape).to(part.dtype))
            for part, given in zip(self.tensors, torch.split(flat, sizes), strict=True)
            if part.requires_grad
        ]
        (gradient,) = torch.autograd.grad([part for part, _ in pairs], self._leaf, [given for _, given in pairs])
        return gradient.double()


def cache_of(like: DynamicCache, layers: list[Any]) -> DynamicCache:
    """A cache of the same kind with other layers."""
    made = copy.copy(like)
    made.layers = layers
    return made


def layer_with(like: Any, keys: torch.Tensor, values: torch.Tensor, length: int | None = None) -> Any:
    """A layer of the same kind with other keys and values; ``length``: positions seen, if others than before."""
    made = copy.copy(like)
    made.keys, made.values = keys, values
    if length is not None and isinstance(made, DynamicSlidingWindowLayer):
        made.cumulative_length = length
    return made


def _parts(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if not layer.is_initialized:
        raise NotShareable("some of its layers keep nothing")
    return cast(torch.Tensor, layer.keys), cast(torch.Tensor, layer.values)
