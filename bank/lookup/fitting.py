"""Bring a prompt to a length that the job insists on."""

from __future__ import annotations

from torch import Tensor, cat

__all__ = ["fit_length"]


def fit_length(prompt: Tensor, length: int | None) -> Tensor:
    """A prompt (tokens, width) with exactly ``length`` tokens; None leaves it as it is.

    Missing tokens are zero vectors in front, surplus ones are cut from the front: what stands next to the job's input
    matters most. Of repeated, mean, sampled and zero tokens, zeros disturbed the small model least
    (``fitting`` in benchmarks/results/bank.json).
    """
    have = prompt.shape[0]
    if length is None or have == length:
        return prompt
    if have > length:
        return prompt[have - length :].clone()
    return cat([prompt.new_zeros(length - have, prompt.shape[1]), prompt])
