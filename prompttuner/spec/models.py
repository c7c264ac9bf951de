"""Checks of a model's name or folder that need neither torch nor the network."""

from __future__ import annotations

import json
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from prompttuner.errors import ModelError
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.spec.text import expand, is_file, is_folder, shorten
from prompttuner.spec.weights import check_stored_weights

__all__ = ["SMALL", "check_at_hand", "check_model_folder", "locate_model", "trusts_own_code"]

SMALL = "small"
"""Alias of the small model that is shipped with the package."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


def locate_model(model: str, base: Path) -> str:
    """The folder (absolute) or hub id that ``model`` means. Relative folders are taken from ``base``.

    Raises:
        ModelError: no such folder and no possible hub id.
    """
    if model == SMALL:
        return str(import_module("prompttuner.smallmodel").path())
    folder = (base / expand(model)).absolute()
    if is_folder(folder):
        return str(folder.resolve())
    if is_file(folder):
        raise ModelError(f"model {model!r} is a file; give the folder that holds config.json and the weights")
    if model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model) or ".." in model:
        raise ModelError(
            f"model {shorten(model)!r}: no such folder ({shorten(folder)}), and not a hub id such as 'gpt2' or "
            "'facebook/opt-125m'"
        )
    return model


def check_at_hand(model: str, offline: bool) -> None:
    """Check that a hub id can be loaded where there is no internet: that it is in the hub's cache.

    Args:
        model: as ``locate_model`` returns it.
        offline: whether allocations have no internet; the environment's ``HF_HUB_OFFLINE`` counts too.

    Raises:
        ModelError: it is not there; a mistyped folder looks like a hub id, too.
    """
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if not offline or Path(model).is_absolute():
        return
    folder = _hub_cache() / f"models--{model.replace('/', '--')}" / "snapshots"
    try:
        there = any(folder.iterdir())
    except OSError:
        there = False
    if not there:
        place = f"no folder {shorten(str(Path.cwd() / model))} and " if "/" in model else ""
        raise ModelError(
            f"model {shorten(model)!r}: there is {place}no such model in the hub's cache ({folder.parents[1]}), and "
            f"allocations have no internet: correct the folder, or `prompttuner fetch {model}` where there is one"
        )


def _hub_cache() -> Path:
    """Where huggingface_hub keeps models, by its own environment variables."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{base}/huggingface"
    return Path(home).expanduser() / "hub"


def trusts_own_code(spec: ResolvedSpec) -> bool:
    """Whether a resolved spec allows the Python code of its own model to run, by folder, hub id or the user's name."""
    return not {spec.model, spec.model_name or spec.model}.isdisjoint(spec.trust_remote_code)


def check_model_folder(folder: Path | str, allowed_code: tuple[str, ...] = (), name: str | None = None) -> None:
    """Check that a local folder holds a causal LM that can be loaded.

    ``allowed_code`` names models whose own Python code may run; ``name`` is what the user called this one.

    Raises:
        ModelError: no config, no (or incomplete) weights, no tokenizer, or remote code that is not allowed.
    """
    folder = Path(folder)
    _check_no_adapter(folder)
    config = _read_object(folder / "config.json", "a model folder must hold it (is this the right folder?)")
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"model {name or str(folder)!r} is an encoder-decoder ({config.get('model_type')}), not a causal language "
            "model: a prompt before its input is another method, which is not supported"
        )
    _check_weights(folder)
    check_stored_weights(folder)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(f"model folder {folder} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)})")
    names = {str(folder), name or str(folder)}
    if config.get("auto_map") and not names & set(allowed_code):
        label = name or str(folder)
        raise ModelError(
            f"model {label!r} wants to run its own Python code (auto_map in config.json); if you trust it, allow it by "
            f"name: trust_remote_code = [{json.dumps(label)}]"
        )


def _check_no_adapter(folder: Path) -> None:
    """An adapter's folder is no model; and a model is not tuned with an adapter on it that nobody spoke of."""
    if not (folder / "adapter_config.json").is_file():
        return
    adapter = _read_object(folder / "adapter_config.json", "it describes the adapter")
    kind, base = adapter.get("peft_type", "PEFT"), adapter.get("base_model_name_or_path") or "its base model"
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is a PEFT adapter ({kind}), not a model: its base is {base}; give that as the model (a soft "
            "prompt's adapter_model.safetensors can be the initial_prompt)"
        )
    raise ModelError(
        f"model folder {folder} also holds a PEFT adapter ({kind}, adapter_config.json), which would be loaded on top "
        "of the model; merge it into the weights, or move it away to tune on the plain model"
    )


def _check_weights(folder: Path) -> None:
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            shards = _read_object(folder / index, "it lists the shards").get("weight_map")
            names = sorted(set(shards.values())) if isinstance(shards, dict) else []
            missing = [shard for shard in names if not (folder / str(shard)).is_file()]
            if missing or not names:
                raise ModelError(f"model folder {folder}: weights are incomplete: {index} names {missing or 'nothing'}")
            return
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not weights:
        raise ModelError(f"model folder {folder} holds no weights (no *.safetensors, no pytorch_model*.bin)")
    if not any(path.stat().st_size for path in weights):
        raise ModelError(f"model folder {folder}: {weights[0].name} is empty; was its download cut off?")


def _read_object(path: Path, why: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"model folder {path.parent} has no {path.name}: {why}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is broken: {error}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is broken: not a JSON object")
    return value
