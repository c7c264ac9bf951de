"""Greedy decoding by plain forward passes, for families whose cache or masks cannot be relied on (recurrent ones)."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["greedy"]


@torch.no_grad()
def greedy(model: Any, rows: list[torch.Tensor], max_new_tokens: int, ends: frozenset[int], pad: int) -> torch.Tensor:
    """New tokens, int64 [samples, up to max_new_tokens]; ``pad`` after an end token.

    Each token costs a pass over the whole sequence. Padding is on the right, where a causal model cannot see it.

    Args:
        model: a causal LM.
        rows: input embeddings of each sample, [length, hidden].
        max_new_tokens: so many at most.
        ends: tokens after which a sample is done.
        pad: what stands after them.
    """
    embed = model.get_input_embeddings()
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    room = int(lengths.max()) + max_new_tokens
    embeds = torch.stack([torch.cat([row, row.new_zeros(room - len(row), row.shape[1])]) for row in rows])
    made = torch.full((len(rows), max_new_tokens), pad, dtype=torch.int64, device=embeds.device)
    each = torch.arange(len(rows), device=embeds.device)
    done = torch.zeros(len(rows), dtype=torch.bool, device=embeds.device)
    for index in range(max_new_tokens):
        seen = int(lengths.max())
        logits = model(inputs_embeds=embeds[:, :seen], use_cache=False).logits[each, lengths - 1]
        chosen = logits.argmax(-1)
        made[:, index] = torch.where(done, made[:, index], chosen)
        done |= torch.tensor([token in ends for token in chosen.tolist()], device=done.device)
        if bool(done.all()):
            return made[:, : index + 1]
        embeds[each, lengths] = embed(chosen).to(embeds.dtype)
        lengths = lengths + 1
    return made
