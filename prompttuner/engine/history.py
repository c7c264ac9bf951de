"""What a run has reached so far: evaluations, the best prompt, the iterations to the target accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

__all__ = ["Evaluation", "Progress", "meets"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the whole evaluation set."""

    step: int
    """Iterations done before it."""
    loss: float
    """Mean negative log likelihood (nats) of a target token."""
    metric: float
    """The target's metric; the loss itself where that is the target."""
    train_loss: float | None
    """Mean training loss since the evaluation before; None at the first."""
    train_s: float
    """Seconds spent in training steps until now, over all members' lives."""


def meets(target: Mapping[str, Any], value: float) -> bool:
    """Whether a metric's value meets ``{"metric", "op", "value"}``; NaN never does."""
    limit = float(target["value"])
    return value <= limit if target["op"] == "<=" else value >= limit


@dataclass
class Progress:
    """History and the prompts worth keeping. All of it is part of a checkpoint."""

    target: Mapping[str, Any]
    evaluations: list[Evaluation] = field(default_factory=list)
    ita: int | None = None
    """Iterations to the target accuracy; None until it is reached."""
    best_step: int | None = None
    best_prompt: torch.Tensor | None = None
    early_step: int | None = None
    early_prompt: torch.Tensor | None = None
    """The prompt when the metric first was half-way from its initial value to the target: a less saturated start for
    related tasks than the final one."""

    def add(self, evaluation: Evaluation, prompt: torch.Tensor) -> None:
        """Record an evaluation of ``prompt``."""
        self.evaluations.append(evaluation)
        metric = evaluation.metric
        best = self.best
        if best is None or self._better(evaluation, best):
            self.best_step, self.best_prompt = evaluation.step, prompt.detach().clone()
        half_way = {**self.target, "value": (self.evaluations[0].metric + self.target["value"]) / 2}
        if self.early_step is None and meets(half_way, metric):
            self.early_step, self.early_prompt = evaluation.step, prompt.detach().clone()
        if self.ita is None and meets(self.target, metric):
            self.ita = evaluation.step

    @property
    def best(self) -> Evaluation | None:
        """The evaluation of the best prompt: by the target's metric, then by the loss."""
        return next((e for e in self.evaluations if e.step == self.best_step), None)

    @property
    def last(self) -> Evaluation | None:
        """The latest evaluation; None before the first."""
        return self.evaluations[-1] if self.evaluations else None

    def _better(self, new: Evaluation, old: Evaluation) -> bool:
        sign = 1.0 if self.target["op"] == "<=" else -1.0

        def rank(e: Evaluation) -> tuple[float, float]:
            metric = math.inf if math.isnan(e.metric) else sign * e.metric
            return metric, math.inf if math.isnan(e.loss) else e.loss

        return rank(new) < rank(old)

    def to_json(self) -> dict[str, Any]:
        """The history as JSON values, without tensors."""
        return {
            "evaluations": [asdict(e) for e in self.evaluations],
            "ita": self.ita,
            "best_step": self.best_step,
            "early_step": self.early_step,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The prompts that belong to the history, by name."""
        kept = {"best_prompt": self.best_prompt, "early_prompt": self.early_prompt}
        return {key: tensor for key, tensor in kept.items() if tensor is not None}

    @classmethod
    def restore(
        cls, target: Mapping[str, Any], value: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> Progress:
        """The inverse of `to_json` and `tensors`."""
        return cls(
            target,
            [Evaluation(**row) for row in value["evaluations"]],
            value["ita"],
            value["best_step"],
            tensors.get("best_prompt"),
            value["early_step"],
            tensors.get("early_prompt"),
        )
