"""Model folders made from the small model or anew, most of them wrong in one way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from prompttuner import smallmodel

__all__ = ["changed_copy", "fresh_model"]

Weights = dict[str, torch.Tensor]


def changed_copy(
    folder: Path,
    weights: Callable[[Weights], Weights] | None = None,
    config: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
) -> Path:
    """The small model in ``folder``, with changed weights, config or generation config."""
    shutil.copytree(smallmodel.path(), folder)
    if weights is not None:
        save_file(weights(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    for name, change in (("config.json", config), ("generation_config.json", generation)):
        file = folder / name
        if change is not None:
            present = json.loads(file.read_text()) if file.is_file() else {}
            file.write_text(json.dumps({**present, **change}))
    return folder


def fresh_model(folder: Path, kind: str, config: transformers.PreTrainedConfig) -> Path:
    """A tiny model of a transformers class with random weights, and the small model's tokenizer."""
    torch.manual_seed(5)
    config.vocab_size = len(transformers.AutoTokenizer.from_pretrained(smallmodel.path()))
    getattr(transformers, kind)(config).save_pretrained(folder)
    for file in smallmodel.path().glob("*token*"):
        shutil.copy(file, folder)
    return folder
