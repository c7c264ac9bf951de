"""From a folder or hub id to weights: exactly those that are stored, or a refusal that names what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from prompttuner.engine.llm.generation import own_generation_config
from prompttuner.errors import ModelError

__all__ = ["Loaded", "check_usable", "load_weights", "name_some", "unused_text"]

SHOWN = 4


class Usable(Protocol):
    """A loaded model, as far as it says what is wrong with it."""

    name: str
    unused: tuple[str, ...]
    refusal: str


class Loaded(NamedTuple):
    """A model and what its loading report says."""

    model: Any
    unused: tuple[str, ...]
    """Stored tensors that the model has no place for."""


def load_weights(source: str, label: str, dtype: torch.dtype, trusted: bool, *, meta: bool = False) -> Loaded:
    """Load a causal LM with the transformers library and read its report.

    Args:
        source: folder or hub id.
        label: what the user calls the model.
        dtype: type of the weights.
        trusted: whether its own Python code may run.
        meta: only look: names and shapes are compared, no weight is read.

    Raises:
        ModelError: weights that the model needs are not stored (they would be drawn anew at each load), or have
            another shape; an encoder-decoder; an adapter on top.
        OSError, ValueError, ...: whatever transformers says of a folder that it cannot load.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, trust_remote_code=trusted)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"model {label!r} is an encoder-decoder ({config.model_type}), not a causal language model")
    where = {"device_map": "meta"} if meta else {}
    model, report = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        trust_remote_code=trusted,
        generation_config=own_generation_config(source, config),
        output_loading_info=True,
        **where,
    )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"model {label!r} comes with a PEFT adapter on top of it; merge the adapter, or take it away")
    _check_missing(label, model, sorted(report["missing_keys"]), sorted(report["unexpected_keys"]))
    if report.get("mismatched_keys"):
        names = sorted(str(entry[0]) for entry in report["mismatched_keys"])
        raise ModelError(f"model {label!r}: stored weights have another shape than its config says: {name_some(names)}")
    return Loaded(model, tuple(sorted(report["unexpected_keys"])))


def check_usable(loaded: Usable, allow_unused: bool) -> None:
    """Check that a loaded model is what a job takes it for.

    Raises:
        ModelError: a probe refused it, or stored weights were left unused which the job does not allow.
    """
    if loaded.refusal:
        raise ModelError(loaded.refusal)
    if loaded.unused and not allow_unused:
        raise ModelError(unused_text(loaded.name, loaded.unused))


def unused_text(label: str, unused: Sequence[str]) -> str:
    """Why a model of which stored weights are left unused is refused."""
    return (
        f"model {label!r}: {len(unused)} stored weights have no place in the model that its config describes "
        f"({name_some(unused)}), so it would be tuned without them; mend the config, or set allow_unused_weights = true"
    )


def name_some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(known[:SHOWN]) + more


def _check_missing(label: str, model: Any, missing: list[str], unexpected: list[str]) -> None:
    if not missing:
        return
    head = [name for name in missing if "lm_head" in name or "embed_out" in name or name.startswith("cls.")]
    other = f"; stored and not used: {name_some(unexpected)}" if unexpected else ""
    why = (
        "its language-model head is not stored, so the folder was saved from a classifier or a headless model"
        if len(head) == len(missing)
        else "the config and the stored weights do not belong together"
    )
    raise ModelError(
        f"model {label!r}: {len(missing)} weights of {type(model).__name__} are not stored and would be drawn anew at "
        f"each load ({name_some(missing)}): {why}{other}"
    )
