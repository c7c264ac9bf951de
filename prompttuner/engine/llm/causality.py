"""Whether a loaded model is one that a soft prompt can be tuned on: asked of the model itself, with a few tokens."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from prompttuner.errors import ModelError

__all__ = ["probe"]

LENGTH = 6
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Of a change, as a share of the largest logit. Causal models show none at all, bidirectional ones with random weights
10 to 100 times as much in float32."""
HALF_TOLERANCE = 1e-2


class Probed(Protocol):
    """A loaded model, as far as the probe looks at it."""

    model: Any
    tokenizer: Any
    name: str
    pads_left: bool


@torch.no_grad()
def probe(loaded: Probed) -> None:
    """Check a model where it computes, and note whether padding on the left is masked (``loaded.pads_left``).

    Raises:
        ModelError: no head or input embeddings; input embeddings do not stand for tokens; a later token changes the
            logits of an earlier one.
    """
    model, embed = loaded.model, loaded.model.get_input_embeddings()
    if embed is None or model.get_output_embeddings() is None:
        raise ModelError(f"model {loaded.name!r} has no language-model head or no word embeddings")
    ids = _tokens(loaded, embed.weight.shape[0]).to(embed.weight.device)
    given = embed(ids)
    soft = (given[:1].mean(dim=1, keepdim=True) * 0.5).expand(2, -1, -1)  # the same for both; stands for no token
    seen = _logits(loaded, torch.cat([soft, given], dim=1))
    limit = TOLERANCE.get(seen.dtype, HALF_TOLERANCE) * float(seen.abs().max())
    if float((seen[0, :-1] - seen[1, :-1]).abs().max()) > limit:
        raise ModelError(
            f"model {loaded.name!r} ({type(model).__name__}) is no causal language model: a later token changes what "
            "it says of earlier ones, so the loss would see the answer"
        )
    plain = model(input_ids=ids, use_cache=False).logits
    if float((_logits(loaded, given) - plain).abs().max()) > limit:
        raise ModelError(
            f"model {loaded.name!r} ({type(model).__name__}) takes more from a token than its embedding, so a soft "
            "prompt cannot stand before its input"
        )
    loaded.pads_left = _masks_the_left(loaded, given, soft, limit)


def _tokens(loaded: Probed, rows: int) -> torch.Tensor:
    """Two samples, int64 [2, LENGTH], that differ in the last token; none is special, where there are enough."""
    special = set(getattr(loaded.tokenizer, "all_special_ids", ()))
    usable = [i for i in range(min(rows, 10_000)) if i not in special] or list(range(rows))
    first = [usable[(7 * i + 3) % len(usable)] for i in range(LENGTH)]
    other = usable[(usable.index(first[-1]) + 1) % len(usable)]
    return torch.tensor([first, [*first[:-1], other]])


def _logits(loaded: Probed, embeds: torch.Tensor, **more: Any) -> torch.Tensor:
    try:
        logits: torch.Tensor = loaded.model(inputs_embeds=embeds, use_cache=False, **more).logits
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model {loaded.name!r} ({type(loaded.model).__name__}) does not compute with embeddings that stand for no "
            f"token, so a soft prompt cannot stand before its input: {reason}"
        ) from None
    return logits


def _masks_the_left(loaded: Probed, given: torch.Tensor, soft: torch.Tensor, limit: float) -> bool:
    """Whether what stands on the left under a mask of 0 leaves all later logits alone."""
    both = torch.cat([torch.stack([soft[0], 3 * given[0, :1]]), given[:1].expand(2, -1, -1)], dim=1)
    mask = torch.ones(both.shape[:2], dtype=torch.int64, device=both.device)
    mask[:, 0] = 0
    try:
        seen = _logits(loaded, both, attention_mask=mask)
    except ModelError:
        return False
    return float((seen[0, 1:] - seen[1, 1:]).abs().max()) <= limit
