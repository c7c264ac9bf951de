"""A tuner's whole state as tensors and JSON, and as one safetensors blob."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from prompttuner.errors import StateError

__all__ = ["TunerState", "fingerprint", "pack", "unpack"]

STATE_VERSION = 1

DEFINING = (
    "model", "dtype", "train_sha256", "eval_sha256", "template", "target", "max_iterations", "learning_rate",
    "batch_size", "eval_every", "eval_samples", "seed", "bucketing",
)  # fmt: skip
"""Keys of a spec that decide which steps a run makes; a state of other values cannot be gone on with."""


@dataclass
class TunerState:
    """Everything that a resumed run needs, apart from the spec and its data."""

    tensors: dict[str, torch.Tensor]
    """``prompt``, ``exp_avg``, ``exp_avg_sq`` (AdamW's moments), and ``best_prompt`` and ``early_prompt`` where there
    are any; each float32 [length, hidden] on the CPU."""
    meta: dict[str, Any]
    """``version``, ``step``, ``fingerprint``, ``progress``, ``loss_sum``, ``loss_steps``, ``train_s``, ``origin``,
    ``warnings``."""


def fingerprint(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a spec that must be the same for a state to fit it."""
    return {key: spec.get(key) for key in DEFINING}


def check_fits(meta: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Check that a state belongs to ``spec``.

    Raises:
        StateError: it is of another version, or a spec key that matters differs; the message names the keys.
    """
    if meta.get("version") != STATE_VERSION:
        raise StateError(f"the checkpoint has format {meta.get('version')}, this program reads {STATE_VERSION}")
    mine, theirs = fingerprint(spec), meta["fingerprint"]
    differing = [key for key in mine if mine[key] != theirs.get(key)]
    if differing:
        raise StateError(f"the checkpoint belongs to another job: {', '.join(differing)} differ")


def pack(state: TunerState) -> bytes:
    """One safetensors blob; the JSON part is in its header. What members send to a newcomer."""
    from safetensors.torch import save

    contiguous = {key: tensor.contiguous() for key, tensor in state.tensors.items()}
    return bytes(save(contiguous, metadata={"meta": json.dumps(state.meta)}))


def unpack(blob: bytes) -> TunerState:
    """The inverse of `pack`.

    Raises:
        StateError: not such a blob.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        size = int.from_bytes(blob[:8], "little")
        meta = json.loads(json.loads(blob[8 : 8 + size])["__metadata__"]["meta"])
        return TunerState(load(blob), meta)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StateError(f"the state is damaged: {error}") from None
