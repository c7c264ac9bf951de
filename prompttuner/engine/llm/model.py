"""Load a frozen causal language model, or say clearly why it cannot be loaded."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prompttuner.engine.llm.causality import probe
from prompttuner.engine.llm.ends import adopt_end
from prompttuner.errors import ModelError
from prompttuner.spec.weights import stored_tensors

__all__ = ["LoadedModel", "check_fits", "choose_dtype", "load_model", "weight_elements"]

GIB = 1024**3
WORKING_SHARE = 0.10
"""Room beside the weights, as a share of them, for activations and the CUDA context; an honest lower bound, since what
does not fit in one micro-batch is split further while tuning."""
CONTEXT_BYTES = GIB // 2


@dataclass
class LoadedModel:
    """A frozen model in evaluation mode, with its tokenizer."""

    model: Any
    tokenizer: Any
    name: str
    dtype: torch.dtype
    device: torch.device
    seconds: float = 0.0
    asked_dtype: str | None = None
    """What the job asked for; ``auto`` is decided anew when the model moves to another kind of device."""
    unused: tuple[str, ...] = ()
    """Stored tensors that the model has no place for: what it is may be more than what was loaded."""
    refusal: str = ""
    """Why no job may use it after all, where that was found out after the load."""
    pads_left: bool = True
    """Whether padding before a sample is masked; some recurrent families see it, and their answers come without it."""

    def __post_init__(self) -> None:
        """Let the tokenizer know the end of text where only the model's configs do."""
        adopt_end(self.tokenizer, self.model)

    @property
    def hidden(self) -> int:
        """Width of the input embeddings: the second dimension of a soft prompt."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def rows(self) -> int:
        """Rows of the input embeddings: token ids from 0 up to this number, exclusive."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def bytes(self) -> int:
        """Size of the weights in memory."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @property
    def max_positions(self) -> int | None:
        """The longest sequence, soft prompt included, that the model was made for.

        None when its config does not say.
        """
        value = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(value) if isinstance(value, int) and value > 0 else None

    def to(self, device: str | torch.device) -> LoadedModel:
        """The same model on ``device`` (moved, not copied), in the type that ``auto`` means there.

        Raises:
            ModelError: it does not fit the GPU; the message has the numbers.
        """
        device = torch.device(device)
        dtype = choose_dtype(self.asked_dtype, device) if self.asked_dtype else self.dtype
        if device.type == "cuda":
            _check_gpu(self.name, self.bytes * dtype.itemsize // self.dtype.itemsize, dtype, device)
        if dtype != self.dtype:
            # Weights only: buffers such as the frequencies of rotary positions are float32 in every type of weights.
            for parameter in self.model.parameters():
                parameter.data = parameter.data.to(device, dtype)
            self.model.config.dtype = dtype
        self.model.to(device)
        self.device, self.dtype = device, dtype
        return self


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The type of the weights: ``auto`` is bfloat16 on a GPU that computes in it, and float32 elsewhere."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in named:
        return named[dtype]
    if dtype != "auto":
        raise ModelError(f"dtype {dtype!r} is none of auto, {', '.join(named)}")
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if native else torch.float32


def load_model(
    path: str | Path,
    dtype: str = "auto",
    trust_remote_code: Sequence[str] = (),
    *,
    device: str | torch.device = "cpu",
    name: str | None = None,
    probed: bool = True,
) -> LoadedModel:
    """Load a causal LM with its tokenizer: frozen, evaluation mode, no gradients for weights.

    Args:
        path: a local folder or a hub id.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        trust_remote_code: names (or paths) of models whose own Python code may run; no other model's ever does.
        device: where the weights go.
        name: what the user calls this model, if not ``path``; also looked up in ``trust_remote_code``.
        probed: False where it moves to a GPU later, and is probed there (`prompttuner.engine.llm.causality`).

    Raises:
        ModelError: folder, config, weights or tokenizer missing or broken; weights that do not match the config; no
            causal language model; remote code needed but not allowed; does not fit the GPU.
    """
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    from prompttuner.engine.llm.loading import load_weights

    source, label = str(path), name or str(path)
    target = torch.device(device)
    chosen = choose_dtype(dtype, target)
    folder = Path(source)
    if folder.is_absolute() and not folder.is_dir():
        raise ModelError(
            f"model folder {source} does not exist on this host; is it on a file system that all nodes share?"
        )
    if target.type == "cuda" and folder.is_dir() and (elements := weight_elements(folder)):
        _check_gpu(label, elements * chosen.itemsize, chosen, target)
    allowed = bool({source, label} & set(trust_remote_code))
    started = time.monotonic()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=allowed)
        model, unused = load_weights(source, label, chosen, allowed)
        model.to(target)
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(f"model {label!r} does not fit {_gpu_name(target)}: {error}") from None
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(_explain(label, folder, allowed, error)) from error
    model.requires_grad_(False)
    model.eval()
    loaded = LoadedModel(model, tokenizer, label, chosen, target, time.monotonic() - started, dtype, unused)
    if probed:
        probe(loaded)
    return loaded


def weight_elements(folder: Path) -> int:
    """Number of parameters stored in a folder's safetensors files, from their headers alone; 0 when there are none."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(ModelError):  # a broken file is reported, with its reason, when it is loaded
            total += sum(math.prod(shape) for shape in stored_tensors(file).values())
    return total


def check_fits(label: str, weights: int, dtype: str, *, gpu: str, free: int, total: int) -> None:
    """Check that ``weights`` bytes and some working memory fit ``free`` bytes of a GPU.

    Raises:
        ModelError: they do not; the message has all numbers in GiB.
    """
    needed = int(weights * (1 + WORKING_SHARE)) + CONTEXT_BYTES
    if needed > free:
        advice = "choose a smaller model, a larger GPU" + (
            "" if dtype in {"bfloat16", "float16"} else ", or dtype bfloat16"
        )
        raise ModelError(
            f"model {label!r} does not fit {gpu}: its weights take {weights / GIB:.1f} GiB in {dtype} and tuning at "
            f"least {(needed - weights) / GIB:.1f} GiB more, but {free / GIB:.1f} of {total / GIB:.1f} GiB are free; "
            f"{advice}"
        )


def _check_gpu(label: str, weights: int, dtype: torch.dtype, device: torch.device) -> None:
    free, total = torch.cuda.mem_get_info(device)
    check_fits(label, weights, str(dtype).removeprefix("torch."), gpu=_gpu_name(device), free=free, total=total)


def _gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _explain(label: str, folder: Path, allowed: bool, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    if not allowed and ("trust_remote_code" in str(error) or "custom code" in str(error)):
        return (
            f"model {label!r} needs its own Python code, which is not allowed to run; if you trust it, allow it by "
            f"name: trust_remote_code = [{json.dumps(label)}]"
        )
    if not folder.is_dir():
        return (
            f"model {label!r} cannot be loaded from the hub or its cache: {reason} "
            f"(on nodes without internet, run 'prompttuner fetch {label}' before)"
        )
    if not (folder / "config.json").is_file():
        return f"model folder {folder} has no config.json; is it the right folder?"
    if not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        return f"model folder {folder} holds no weights (no *.safetensors, no *.bin)"
    return f"model {label!r} cannot be loaded: {reason}"
