"""Micro-batches: samples of one step grouped by length, so that little is spent on padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from prompttuner.engine.llm.encoding import Encoded

__all__ = ["Collated", "collate", "micro_batches"]


class Collated(NamedTuple):
    """Samples as tensors, padded on the right.

    A causal model cannot see padding on its right, and positions count from the left, so neither attention mask nor
    position ids are needed, and attention takes its fastest path.
    """

    ids: torch.Tensor
    """Token ids, int64 [samples, length - 1]: nothing follows the last token of the longest sample."""
    rows: torch.Tensor
    """Sample of each target token, int64 [tokens]."""
    columns: torch.Tensor
    """Position in ``ids`` of the token *before* each target token, int64 [tokens]; -1 is the soft prompt's last one."""
    targets: torch.Tensor
    """The target tokens, int64 [tokens]."""


def micro_batches(lengths: Sequence[int], max_tokens: int, overhead: int) -> list[list[int]]:
    """Split samples into micro-batches at the least estimated cost.

    Sorted by length, a micro-batch is a run of neighbours and costs ``samples * longest + overhead``; the best cuts are
    found by dynamic programming (exact for this cost; quadratic in the number of samples).

    Args:
        lengths: tokens of each sample, soft prompt included.
        max_tokens: most padded tokens of a micro-batch; a single longer sample goes alone.
        overhead: cost of one more forward and backward pass, in tokens.

    Returns:
        Indices into ``lengths``, longest micro-batch first (so that a lack of memory shows at once).
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the first n samples, and where their last micro-batch begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        options = []
        for start in range(end - 1, -1, -1):
            size = (end - start) * longest
            if size > max_tokens and end - start > 1:
                break
            options.append((best[start][0] + size + overhead, start))
        best.append(min(options))
    groups = []
    end = len(order)
    while end > 0:
        start = best[end][1]
        groups.append(order[start:end])
        end = start
    return groups


def collate(samples: Sequence[Encoded], pad: int, device: torch.device, width: int | None = None) -> Collated:
    """Bring samples together into one batch, less its last column.

    Samples are padded on the right to ``width`` (None: to the longest).
    """
    width = max(sample.length for sample in samples) if width is None else width
    inputs = max(1, width - 1)
    ids = torch.full((len(samples), inputs), pad, dtype=torch.int64)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for index, sample in enumerate(samples):
        ids[index, : sample.length] = torch.tensor([*sample.prompt, *sample.target][:inputs])
        rows += [index] * len(sample.target)
        columns += range(len(sample.prompt) - 1, sample.length - 1)
        targets += sample.target
    flat = torch.tensor([rows, columns, targets])
    return Collated(ids.to(device), *flat.to(device))
