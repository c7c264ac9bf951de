"""A short race: the last candidates are really tuned for a few steps, and compared after that.

A prompt's first loss is a good but not a perfect sign of how soon it converges; a few steps tell more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prompttuner.tuning.encoding import Encoded
from prompttuner.tuning.model import LoadedModel
from prompttuner.tuning.prefix import PrefixModel

__all__ = ["STEP_COST", "RaceSettings", "race", "race_cost"]

STEP_COST = 3
"""A tuning step on a sample counts as three evaluations: forward, and backward at twice its cost."""
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class RaceSettings:
    """How long and on what."""

    finalists: int = 3
    steps: int = 6
    batch: int = 8


def race_cost(settings: RaceSettings, finalists: int, evaluation: int) -> int:
    """Evaluations that a race counts for, with ``evaluation`` samples to compare on afterwards."""
    return finalists * (settings.steps * settings.batch * STEP_COST + evaluation)


def race(
    loaded: LoadedModel,
    prompts: Sequence[Tensor],
    train: Sequence[Encoded],
    evaluation: Sequence[Encoded],
    *,
    learning_rate: float,
    settings: RaceSettings,
) -> list[float]:
    """Mean loss of a target token on ``evaluation`` after each prompt (tokens, width) was tuned for a few steps.

    The same AdamW and gradient bound as in the job itself; every prompt sees the same batches of ``train`` in turn.
    """
    model = PrefixModel(loaded)
    tokens = sum(len(sample.target) for sample in evaluation)
    results = []
    for start in prompts:
        prompt = torch.nn.Parameter(start.to(loaded.device, torch.float32).clone())
        optimiser = torch.optim.AdamW([prompt], lr=learning_rate, weight_decay=0.0, foreach=False)
        for step in range(settings.steps):
            first = step * settings.batch
            samples = [train[i % len(train)] for i in range(first, first + settings.batch)]
            prompt.grad = torch.zeros_like(prompt)
            model.add_gradient(prompt, samples)
            prompt.grad /= sum(len(sample.target) for sample in samples)
            torch.nn.utils.clip_grad_norm_([prompt], MAX_GRADIENT_NORM, foreach=False)
            optimiser.step()
        results.append(model.losses(prompt.detach(), evaluation) / tokens)
    return results
