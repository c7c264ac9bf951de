"""The samples of a job that candidates are scored on, and the batches that they are tuned on for a few steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompttuner.engine.llm.encoding import Encoded, encode
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.sampling import SampleOrder
from prompttuner.spec.data import Sample

__all__ = ["pick_samples", "room_for_prompt"]


def pick_samples(
    spec: Mapping[str, Any], loaded: LoadedModel, train: Sequence[Sample], seed: int, count: int, steps: int
) -> tuple[list[Encoded], list[list[Encoded]]]:
    """(``count`` samples to score on, the batches of the job's own first ``steps`` steps); others are not encoded."""
    picked = np.random.default_rng([seed, 0xBA]).permutation(len(train))[:count].tolist()
    order = SampleOrder(len(train), int(spec["batch_size"]), int(spec["seed"]))
    batches = [order.batch(step) for step in range(steps)]
    needed = sorted({*picked, *(i for batch in batches for i in batch)})
    encoded = encode([train[i] for i in needed], spec["template"], loaded.tokenizer, source="training data")
    known = dict(zip(needed, encoded, strict=True))
    return [known[i] for i in picked], [[known[i] for i in batch] for batch in batches]


def room_for_prompt(
    loaded: LoadedModel, samples: Sequence[Encoded], batches: Sequence[Sequence[Encoded]]
) -> int | None:
    """Tokens that these samples leave for a prompt (all of the job's data may leave less); None: no known limit."""
    if loaded.max_positions is None:
        return None
    longest = max((sample.length for part in (samples, *batches) for sample in part), default=0)
    return max(1, loaded.max_positions - longest)
