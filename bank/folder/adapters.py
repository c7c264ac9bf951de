"""Read soft prompts from PEFT adapter folders without torch: safetensors only, never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompttuner.bank.folder.entry import MAX_TENSOR_BYTES, BadEntry, check_prompt

__all__ = ["read_adapter", "read_single_tensor"]

TENSOR_NAMES = ("prompt_embeddings", "prompt")
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
MAX_HEADER = 1 << 20


def read_adapter(folder: Path) -> tuple[NDArray[np.float32], str]:
    """(soft prompt (tokens, width), base model's name) of a PEFT prompt-tuning adapter.

    Raises:
        BadEntry: not such an adapter, pickled, or damaged.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
    except FileNotFoundError:
        raise BadEntry(f"{folder} is no PEFT adapter folder (no adapter_config.json)") from None
    except (OSError, ValueError) as error:
        raise BadEntry(f"{folder}/adapter_config.json cannot be read: {error}") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "PROMPT_TUNING":
        raise BadEntry(f"{folder} is an adapter of kind {kind}; only PROMPT_TUNING holds a soft prompt")
    if config.get("num_transformer_submodules", 1) not in {1, None}:
        raise BadEntry(f"{folder} is an adapter for an encoder-decoder model")
    path = folder / "adapter_model.safetensors"
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise BadEntry(f"{folder} holds a pickle (adapter_model.bin), which is not loaded; save it as safetensors")
    return read_single_tensor(path), str(config.get("base_model_name_or_path") or "")


def read_single_tensor(path: Path) -> NDArray[np.float32]:
    """The soft prompt in a safetensors file (``prompt_embeddings``, ``prompt``, or its only tensor), of any float type.

    Raises:
        BadEntry
    """
    try:
        if path.stat().st_size > MAX_TENSOR_BYTES:
            raise BadEntry(f"{path} is larger than a soft prompt can be")
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size]) if 0 < size <= MAX_HEADER else None
    except OSError as error:
        raise BadEntry(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise BadEntry(f"{path} is not a safetensors file")
    tensors = {name: spec for name, spec in header.items() if name != "__metadata__"}
    name = next((n for n in TENSOR_NAMES if n in tensors), next(iter(tensors)) if len(tensors) == 1 else None)
    if name is None:
        raise BadEntry(f"{path} holds {len(tensors)} tensors, none called {' or '.join(TENSOR_NAMES)}")
    try:
        return check_prompt(_decode(tensors[name], data[8 + size :]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadEntry(f"{path} is damaged: {error}") from None


def _decode(spec: dict[str, Any], body: bytes) -> NDArray[Any]:
    begin, end = spec["data_offsets"]
    part = body[begin:end]
    shape = tuple(int(n) for n in spec["shape"])
    if spec["dtype"] == "BF16":  # numpy has no bfloat16: it is the upper half of a float32
        bits = np.frombuffer(part, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    if spec["dtype"] not in _TYPES:
        raise BadEntry(f"numbers of type {spec['dtype']}: floating point is needed")
    return np.frombuffer(part, _TYPES[spec["dtype"]]).reshape(shape)
