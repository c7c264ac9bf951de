"""The result of a job: a PEFT adapter folder with ``result.json`` and the history as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from prompttuner.engine.checkpoint import new_folder
from prompttuner.engine.history import Evaluation
from prompttuner.engine.tuner import Tuner
from prompttuner.errors import PromptTunerError, SpoolError
from prompttuner.files import sha256_file, write_bytes, write_json

__all__ = ["adapter_config", "keep_prompt", "write_adapter", "write_result"]

COLUMNS = ("step", "loss", "metric", "train_loss", "train_s")
SPEC_KEYS = (
    "name", "model", "model_name", "dtype", "train", "eval", "train_sha256", "eval_sha256", "template", "target",
    "max_iterations", "learning_rate", "batch_size", "eval_every", "eval_samples", "seed", "bucketing",
    "initial_prompt",
)  # fmt: skip


def write_result(folder: Path, tuner: Tuner, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write ``folder`` whole or not at all.

    It holds the adapter, ``result.json``, ``history.csv``, and for the Prompt Bank ``early_prompt.safetensors`` (the
    prompt when half of the way was done).

    Args:
        folder: replaced if it exists.
        tuner: evaluated at least once.
        extra: further keys for ``result.json``.

    Returns:
        The content of ``result.json``.

    Raises:
        SpoolError: it cannot be written.
    """
    from safetensors.torch import save

    value = summary(tuner) | dict(extra or {})
    try:
        with new_folder(folder) as scratch:
            write_adapter(scratch, tuner.result_prompt, tuner.loaded.model.config, str(tuner.spec["model"]))
            early = tuner.progress.early_prompt
            if early is not None:
                write_bytes(scratch / "early_prompt.safetensors", save({"prompt": early.contiguous()}))
            write_bytes(scratch / "history.csv", _history_csv(tuner.progress.evaluations).encode())
            value["adapter_sha256"] = sha256_file(scratch / "adapter_model.safetensors")
            write_json(scratch / "result.json", value)
    except OSError as error:
        raise SpoolError(f"result {folder} cannot be written: {error.strerror or error}") from error
    return value


def summary(tuner: Tuner) -> dict[str, Any]:
    """What ``result.json`` says: of the prompt in the adapter, not of the last one tried."""
    best = tuner.progress.best
    if best is None:
        raise PromptTunerError("no evaluation was made yet: there is no result")
    return {
        "outcome": tuner.outcome,
        "ita": tuner.ita,
        "step": best.step,
        "metric": best.metric,
        "loss": best.loss,
        "iterations": tuner.step_index,
        "train_s": tuner.train_seconds,
        "prompt_length": int(tuner.result_prompt.shape[0]),
        "initial": {"origin": tuner.initial.origin, "warnings": tuner.initial.warnings},
        "first": _row(tuner.progress.evaluations[0]),
        "early_step": tuner.progress.early_step,
        "learning_rate": tuner.learning_rate,
        "max_new_tokens": tuner.max_new_tokens,
        "weights_dtype": str(tuner.loaded.dtype).removeprefix("torch."),
        "spec": {key: tuner.spec[key] for key in SPEC_KEYS if key in tuner.spec},
        "versions": {name: _version(name) for name in ("prompttuner", "torch", "transformers")},
    }


def write_adapter(folder: Path, prompt: torch.Tensor, config: Any, base_model: str) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` as PEFT's `PromptTuningConfig` saves them."""
    from safetensors.torch import save

    tensor = prompt.detach().float().cpu().contiguous()
    write_bytes(folder / "adapter_model.safetensors", save({"prompt_embeddings": tensor}, metadata={"format": "pt"}))
    text = json.dumps(adapter_config(tuple(tensor.shape), config, base_model), indent=2) + "\n"
    write_bytes(folder / "adapter_config.json", text.encode())


def adapter_config(shape: tuple[int, ...], config: Any, base_model: str) -> dict[str, Any]:
    """PEFT's settings for a soft prompt of ``shape`` [length, hidden] on a model with ``config``."""
    text = config.get_text_config()
    return {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "num_virtual_tokens": shape[0],
        "token_dim": shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": _number(text, "num_attention_heads", "n_head", "num_heads"),
        "num_layers": _number(text, "num_hidden_layers", "n_layer", "num_layers", "num_blocks"),
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }


def keep_prompt(folder: Path, tuner: Tuner) -> Path:
    """The best prompt alone as ``folder/prompt.safetensors``, for when a whole result cannot be written.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    path = folder / "prompt.safetensors"
    write_bytes(path, save({"prompt": tuner.result_prompt.contiguous()}))
    return path


def _number(config: Any, *names: str) -> int:
    """A number of the model's config; 1 where it has none: PEFT asks for it, and prompt tuning does not use it."""
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), 1)


def _row(evaluation: Evaluation) -> dict[str, Any]:
    return {key: getattr(evaluation, key) for key in COLUMNS}


def _history_csv(evaluations: list[Evaluation]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(evaluation) for evaluation in evaluations)
    return text.getvalue()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
