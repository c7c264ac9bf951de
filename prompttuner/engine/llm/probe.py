"""Whether a shared pass of the soft prompt gives what the model gives without: tried, not assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel

__all__ = ["objection", "probe_samples"]

TOLERANCE = 1e-5
"""Relative difference of loss and gradient that rounding may make in float32; in other types as many of their steps."""


class Engine(Protocol):
    """What is tried: a `PrefixModel`."""

    loaded: LoadedModel
    sharing: bool | None

    def gradient(
        self, prompt: torch.Tensor, samples: Sequence[Encoded], widths: Sequence[int] | None = None
    ) -> tuple[float, torch.Tensor]:
        """Summed loss, and its gradient by ``prompt``."""
        ...


def probe_samples(samples: Sequence[Encoded], longest_answer: int) -> list[Encoded]:
    """The longest sample there can be, and a short one that has to be padded beside it.

    The longest one has an answer of ``longest_answer`` tokens, if that is more than its target has. Samples without
    input are left out: they are never shared.
    """
    usable = [sample for sample in samples if sample.prompt and sample.target]
    if not usable:
        return []
    longest = max(usable, key=lambda sample: len(sample.prompt) + max(longest_answer, len(sample.target)))
    times = -(-longest_answer // len(longest.target)) or 1
    target = (longest.target * times)[: max(longest_answer, len(longest.target))]
    return [longest._replace(target=target), min(usable, key=lambda sample: sample.length)]


def objection(engine: Engine, prompt: torch.Tensor, pair: Sequence[Encoded]) -> str | None:
    """Why the prompt's pass cannot be shared; None where it can.

    Compares loss and gradient of the samples, padded to one width. So it covers what these samples cover: sliding
    windows and switches of long-context positions matter where the longest sample reaches them.
    """
    if not pair:
        return "no sample has both input and target"
    if engine.loaded.model.training:
        return "the model is in training mode"
    width = max(sample.length for sample in pair)
    found = []
    for shared in (False, True):
        engine.sharing = shared
        found.append(engine.gradient(prompt, pair, [width] * len(pair)))
    (loss, gradient), (shared_loss, shared_gradient) = found
    bound = TOLERANCE * max(1.0, torch.finfo(engine.loaded.dtype).eps / torch.finfo(torch.float32).eps)
    bound = min(bound, 0.05)
    apart = abs(shared_loss - loss) / max(abs(loss), 1e-12)
    turned = float((shared_gradient - gradient).norm() / gradient.norm().clamp(min=1e-30))
    if not apart <= bound:
        return f"its loss would differ by {apart:.1e}"
    if not turned <= bound:
        return f"its gradient would differ by {turned:.1e}"
    return None
