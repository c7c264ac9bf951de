"""The learning rate of a job: stated, or by the scale of the model's token embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prompttuner.engine.llm.model import LoadedModel

__all__ = ["SHARE", "job_rate", "rate_of"]

SHARE = 0.0875
"""Learning rate by the root mean square of the token embeddings: AdamW moves each value by about the rate, so a step is
this share of what a value is. 0.01 for the small model (0.114), as before, 0.012 for SmolLM2-135M (0.136)."""
ROWS = 1 << 16
"""Embeddings that are looked at."""


def rate_of(loaded: LoadedModel) -> float:
    """The learning rate that fits a model, rounded to two digits: on copies scaled by c it is c times as large."""
    weight = loaded.model.get_input_embeddings().weight[:ROWS].detach()
    norm = torch.linalg.vector_norm(weight, dtype=torch.float32)
    return float(f"{SHARE * float(norm) / max(1, weight.numel()) ** 0.5:.1e}")


def job_rate(spec: Mapping[str, Any], loaded: LoadedModel) -> float:
    """The learning rate of a resolved spec; those of before always state it."""
    return rate_of(loaded) if spec.get("learning_rate_auto") else float(spec["learning_rate"])
