"""What a model folder stores, from the headers of its safetensors files alone: no torch, no weights read."""

from __future__ import annotations

import json
from pathlib import Path

from prompttuner.errors import ModelError

__all__ = ["check_stored_weights", "stored_tensors"]

MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format itself."""
WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DataParallel put before every name when their wrapper is saved in place of the model."""


def stored_tensors(file: Path) -> dict[str, list[int]]:
    """Names and shapes of the tensors in a safetensors file.

    Raises:
        ModelError: no safetensors file, or it ends before its last tensor does.
    """
    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            raw = handle.read(size) if 0 < size <= MAX_HEADER else b""
            whole = file.stat().st_size
        header = json.loads(raw) if size and len(raw) == size else None
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ModelError(
            f"model file {file} cannot be loaded: it is no whole safetensors file (cut off?); get it again"
        )
    shapes, end = {}, 0
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                shapes[name] = [int(extent) for extent in entry["shape"]]
                end = max(end, int(entry["data_offsets"][1]))
    except (TypeError, KeyError, ValueError, IndexError):
        raise ModelError(f"model file {file} cannot be loaded: its header is broken; get it again") from None
    if whole < 8 + size + end:
        raise ModelError(
            f"model file {file} cannot be loaded: it ends after {whole} of {8 + size + end} bytes; was its download "
            "cut off? Get it again"
        )
    return shapes


def check_stored_weights(folder: Path) -> None:
    """Check that a folder's safetensors files are whole and name their tensors as the model does.

    Raises:
        ModelError: a file is cut off, or the weights of a wrapper were saved.
    """
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        if not file.name.startswith("adapter_"):
            names += stored_tensors(file)
    for prefix in WRAPPERS:
        if names and all(name.startswith(prefix) for name in names):
            raise ModelError(
                f"model folder {folder}: all its weights are called {prefix}..., as a wrapper names them (such as "
                f"{names[0]}), so none of them would be loaded; save the model inside the wrapper, or take {prefix!r} "
                "off the names"
            )
