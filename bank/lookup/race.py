"""A race of tuning steps: the last candidates are really tuned for a little while, and halved by what comes of it.

A prompt's loss before tuning is a weak sign of how soon it converges when no stored prompt fits the job as it is; a few
steps tell much more, and cost as much as a few more samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.llm.prefix import PrefixModel

__all__ = ["STEP_COST", "RaceResult", "RaceSettings", "Runner", "race", "race_cost"]

STEP_COST = 3
"""A tuning step on a sample counts as three evaluations: forward, and backward at twice its cost."""
MAX_GRADIENT_NORM = 1.0
FITS = 0.5
"""A prompt wins untuned if its loss is below this share of the race's best."""


@dataclass(frozen=True, slots=True)
class RaceSettings:
    """How many start, how long they run, and on what."""

    finalists: int = 8
    steps: tuple[int, ...] = (2, 2, 4)
    """Steps of each round; after each but the last, the better half goes on."""
    samples: int = 16
    """Samples that are scored after each round."""


@dataclass(slots=True)
class RaceResult:
    """How it ended."""

    order: list[int]
    """Places of the candidates, best first: by round reached, then by loss."""
    losses: list[float]
    """By candidate: the lowest loss after any round, or the one before the race if it won as it was."""
    prompts: list[Tensor]
    """By candidate: the prompt (tokens, width) that has this loss, float32 on the CPU."""
    evaluations: int
    rounds: list[dict[str, int]] = field(default_factory=list)


def race_cost(settings: RaceSettings, finalists: int, samples: int, batch: int) -> int:
    """Evaluations that a race counts for; ``samples`` is what there is to score on, ``batch`` samples make a step."""
    cost, left = 0, finalists
    for steps in settings.steps:
        cost += left * (steps * batch * STEP_COST + min(samples, settings.samples))
        left = max(1, (left + 1) // 2)
    return cost


def race(
    loaded: LoadedModel,
    prompts: Sequence[Tensor],
    before: Sequence[float],
    batches: Sequence[Sequence[Encoded]],
    evaluation: Sequence[Encoded],
    *,
    learning_rate: float,
    settings: RaceSettings,
) -> RaceResult:
    """Tune prompts (tokens, width) a little, with the job's own AdamW and gradient bound.

    ``batches`` are those of the job's own first steps: other samples would tell less, as the way down is noisy.
    A prompt whose loss before any tuning (``before``, its score) is far below what the others come to wins as it is,
    even if tuning spoils it: the job itself would stop there.
    """
    model = PrefixModel(loaded)
    scored = list(evaluation[: settings.samples])
    tokens = sum(len(sample.target) for sample in scored)
    runners = [Runner(model, prompt, learning_rate) for prompt in prompts]
    result = RaceResult(
        [],
        [math.inf] * len(prompts),
        [prompt.detach().float().cpu() for prompt in prompts],
        race_cost(settings, len(prompts), len(scored), len(batches[0])),
    )
    alive = list(range(len(prompts)))
    first = 0
    for number, steps in enumerate(settings.steps):
        result.rounds.append({"candidates": len(alive), "steps": steps})
        for place in alive:
            runners[place].run(batches[first : first + steps])
            if (loss := runners[place].loss(scored) / tokens) < result.losses[place]:
                result.losses[place], result.prompts[place] = loss, runners[place].prompt
        alive.sort(key=lambda place: result.losses[place])
        kept = len(alive) if number == len(settings.steps) - 1 else max(1, (len(alive) + 1) // 2)
        result.order[:0] = alive[kept:]
        alive = alive[:kept]
        first += steps
    result.order[:0] = alive
    fits = min(range(len(prompts)), key=lambda place: before[place])
    if before[fits] < FITS * result.losses[result.order[0]]:
        result.losses[fits], result.prompts[fits] = before[fits], prompts[fits].detach().float().cpu()
        result.order.sort(key=lambda place: place != fits)
    return result


class Runner:
    """One prompt (tokens, width) being tuned as the job itself would."""

    def __init__(self, model: PrefixModel, start: Tensor, learning_rate: float) -> None:
        self._model = model
        self._prompt = torch.nn.Parameter(start.to(model.loaded.device, torch.float32).clone())
        self._optimiser = torch.optim.AdamW([self._prompt], lr=learning_rate, weight_decay=0.0, foreach=False)

    @property
    def prompt(self) -> Tensor:
        """A copy of the present prompt, float32 on the CPU."""
        return self._prompt.detach().float().cpu().clone()

    def run(self, batches: Sequence[Sequence[Encoded]]) -> None:
        """One step on each batch."""
        for samples in batches:
            _, gradient = self._model.gradient(self._prompt, samples)
            self._prompt.grad = (gradient / sum(len(sample.target) for sample in samples)).to(torch.float32)
            torch.nn.utils.clip_grad_norm_([self._prompt], MAX_GRADIENT_NORM, foreach=False)
            self._optimiser.step()

    def loss(self, samples: Sequence[Encoded]) -> float:
        """Sum over the samples' target tokens."""
        return self._model.losses(self._prompt.detach(), samples)
