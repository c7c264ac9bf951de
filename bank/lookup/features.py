"""Features of prompts: hidden activations of the frozen LLM over the prompt, pooled: which prompts are alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompttuner.engine.llm.model import LoadedModel

__all__ = ["DEFAULT_RECIPE", "POOLINGS", "compute_features", "embed_text", "layer_features", "parse_recipe"]

POOLINGS = ("mean", "last")
DEFAULT_RECIPE = "depth=0,pooling=mean"
"""Chosen by measurement: see benchmarks/bank.py (``features``). Depth is the share of the LLM's layers passed."""
MAX_TOKENS = 1 << 12


def parse_recipe(recipe: str) -> tuple[float, str]:
    """(depth from 0 = embeddings to 1 = last layer, pooling).

    Raises:
        ValueError: not a recipe.
    """
    parts = dict(part.partition("=")[::2] for part in recipe.split(","))
    depth, pooling = float(parts["depth"]), parts["pooling"]
    if not 0 <= depth <= 1 or pooling not in POOLINGS:
        raise ValueError(f"no recipe for features: {recipe!r}")
    return depth, pooling


def embed_text(loaded: LoadedModel, text: str) -> Tensor:
    """The embeddings (tokens, width) of a text, float32 on the CPU; no special tokens are added."""
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        weight = loaded.model.get_input_embeddings()
        rows = weight(torch.tensor([ids or [loaded.tokenizer.eos_token_id or 0]], device=loaded.device))
    embedded: Tensor = rows[0].detach().float().cpu().clone()
    return embedded


def compute_features(
    loaded: LoadedModel, prompts: Sequence[Tensor], recipe: str = DEFAULT_RECIPE
) -> NDArray[np.float32]:
    """Features (prompts, width) of prompts (tokens, width) each, at their own lengths."""
    depth, pooling = parse_recipe(recipe)
    layers = int(loaded.model.config.get_text_config().num_hidden_layers)
    if round(depth * layers) == 0:  # the prompts themselves: no pass through the model is needed
        width = loaded.model.get_input_embeddings().weight.shape[1]
        pooled = [(prompt.mean(0) if pooling == "mean" else prompt[-1]).float().cpu().numpy() for prompt in prompts]
        return np.stack(pooled) if pooled else np.zeros((0, width), np.float32)
    found: NDArray[np.float32] = layer_features(loaded, prompts, [round(depth * layers)], pooling)[0]
    return found


@torch.inference_mode()
def layer_features(
    loaded: LoadedModel, prompts: Sequence[Tensor], layers: Sequence[int], pooling: str
) -> NDArray[np.float32]:
    """Pooled activations (layers, prompts, width); layer 0 is the embeddings."""
    width = loaded.model.get_input_embeddings().weight.shape[1]
    result = np.zeros((len(layers), len(prompts), width), np.float32)
    by_length: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_length.setdefault(prompt.shape[0], []).append(row)
    for length, rows in by_length.items():
        step = max(1, MAX_TOKENS // length)
        for start in range(0, len(rows), step):
            group = rows[start : start + step]
            stacked = torch.stack([prompts[r] for r in group]).to(loaded.device, loaded.dtype)
            states = loaded.model(inputs_embeds=stacked, output_hidden_states=True, use_cache=False).hidden_states
            for place, layer in enumerate(layers):
                state = states[layer].float()
                result[place, group] = (state.mean(1) if pooling == "mean" else state[:, -1]).cpu().numpy()
    return result
