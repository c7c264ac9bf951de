"""Initial soft prompts: random, vocabulary, a text, a file, or a tensor from the Prompt Bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prompttuner.engine.llm.model import LoadedModel
from prompttuner.errors import DataError, SpecError
from prompttuner.protocol.initial import InitialPrompt as AskedPrompt

__all__ = ["DEFAULT_LENGTH", "InitialPrompt", "embed_tokens", "fit_length", "initial_prompt", "read_prompt_file"]

DEFAULT_LENGTH = 20
"""Virtual tokens where neither the spec nor the prompt says how many."""

Lookup = Callable[[], "torch.Tensor | None"]


@dataclass
class InitialPrompt:
    """A soft prompt to start from, float32 [length, hidden] on the CPU, with where it came from."""

    tensor: torch.Tensor
    origin: str
    warnings: list[str] = field(default_factory=list)


def initial_prompt(spec: Mapping[str, Any], loaded: LoadedModel, lookup: Lookup | None = None) -> InitialPrompt:
    """The initial prompt that a spec asks for; the same on every member.

    Args:
        spec: ``initial_prompt``, ``prompt_length`` (None: the prompt's own) and ``seed`` are used.
        loaded: gives vocabulary and width.
        lookup: resolves ``auto``, ``bank`` and ``bank:ENTRY`` to a tensor [length, hidden], or None where the bank has
            nothing; then ``vocab`` is used.

    Raises:
        SpecError: the text has no token, or the spec is unknown.
        DataError: the file is missing, broken, or of another width.
    """
    try:
        asked, length = AskedPrompt.parse(str(spec["initial_prompt"])), spec.get("prompt_length")
    except ValueError as error:
        raise SpecError(str(error)) from None
    if asked.kind in {"auto", "bank", "entry"}:
        found = lookup() if lookup is not None else None
        if found is None:
            return InitialPrompt(
                _vocabulary(loaded, length or DEFAULT_LENGTH, spec["seed"]), "vocab (nothing from the bank)"
            )
        return _fitted(_checked(found, loaded, "the bank's prompt"), length, "bank", [])
    if asked.kind == "random":
        return InitialPrompt(_random(loaded, length or DEFAULT_LENGTH, spec["seed"]), "random")
    if asked.kind == "vocab":
        return InitialPrompt(_vocabulary(loaded, length or DEFAULT_LENGTH, spec["seed"]), "vocab")
    if asked.kind == "text":
        return _text(asked.value, loaded, length)
    return _fitted(read_prompt_file(Path(asked.value), loaded), length, f"file {asked.value}", [])


@torch.no_grad()
def embed_tokens(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """Input embeddings of tokens, float32 [len(ids), hidden] on the CPU.

    They are what the model would see, with its scaling.
    """
    tokens = torch.tensor([ids], device=loaded.device)
    embedded: torch.Tensor = loaded.model.get_input_embeddings()(tokens)
    return embedded[0].float().cpu().clone()


def fit_length(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Cut a prompt [n, hidden] to its last ``length`` rows, or repeat its first row in front until it has them.

    What stands next to the sample matters most, so the prompt's end stays there: filled up like this, instructions of
    the small model keep a far lower loss than repeated as a whole (``fitting`` in benchmarks/results/bank.json).
    """
    missing = length - tensor.shape[0]
    return torch.cat([tensor[:1].expand(max(0, missing), -1), tensor[-length:]]).clone()


def read_prompt_file(path: Path, loaded: LoadedModel) -> torch.Tensor:
    """The soft prompt in a safetensors file.

    It is called ``prompt`` or ``prompt_embeddings`` (as PEFT writes it), or is the only tensor.

    Raises:
        DataError: missing, broken, no such tensor, or of another width.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise DataError(f"initial_prompt {path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"initial_prompt {path}: not a readable safetensors file ({error})") from None
    for key in ("prompt", "prompt_embeddings"):
        if key in tensors:
            return _checked(tensors[key], loaded, f"initial_prompt {path}")
    if len(tensors) == 1:
        return _checked(next(iter(tensors.values())), loaded, f"initial_prompt {path}")
    raise DataError(
        f"initial_prompt {path}: has neither 'prompt' nor 'prompt_embeddings' (but {', '.join(sorted(tensors))})"
    )


def _checked(tensor: torch.Tensor, loaded: LoadedModel, what: str) -> torch.Tensor:
    if tensor.dim() != 2 or tensor.shape[1] != loaded.hidden or tensor.shape[0] < 1:
        raise DataError(
            f"{what} has the shape {tuple(tensor.shape)}, but model {loaded.name!r} needs (length, {loaded.hidden}); "
            f"it was made for another model"
        )
    if not torch.isfinite(tensor).all():
        raise DataError(f"{what} holds values that are not finite")
    return tensor.detach().float().cpu().clone()


def _fitted(tensor: torch.Tensor, length: int | None, origin: str, warnings: list[str]) -> InitialPrompt:
    own = tensor.shape[0]
    if length is None or length == own:
        return InitialPrompt(tensor, origin, warnings)
    done = f"its first {own - length} were cut" if own > length else "the first was repeated in front"
    warning = f"the initial prompt ({origin}) has {own} virtual tokens and prompt_length is {length}: {done}"
    return InitialPrompt(fit_length(tensor, length), origin, [*warnings, warning])


def _random(loaded: LoadedModel, length: int, seed: int) -> torch.Tensor:
    """Normal, with the mean and spread of the model's own embeddings (a fixed scale is far off for most families)."""
    sample = embed_tokens(loaded, _ordinary_tokens(loaded, 1024, seed))
    noise = torch.randn((length, loaded.hidden), generator=torch.Generator().manual_seed(seed))
    return sample.mean() + sample.std() * noise


def _vocabulary(loaded: LoadedModel, length: int, seed: int) -> torch.Tensor:
    """Embeddings of sampled tokens, as Lester et al. (2021) propose."""
    return embed_tokens(loaded, _ordinary_tokens(loaded, length, seed))


def _ordinary_tokens(loaded: LoadedModel, count: int, seed: int) -> list[int]:
    special = set(loaded.tokenizer.all_special_ids)
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    usable = [token for token in range(min(len(loaded.tokenizer), rows)) if token not in special]
    picked = torch.randint(len(usable), (count,), generator=torch.Generator().manual_seed(seed))
    return [usable[index] for index in picked.tolist()]


def _text(text: str, loaded: LoadedModel, length: int | None) -> InitialPrompt:
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise SpecError(f"initial_prompt 'text:{text}' has no token in the vocabulary of model {loaded.name!r}")
    unknown = ids.count(loaded.tokenizer.unk_token_id) if loaded.tokenizer.unk_token_id is not None else 0
    warnings = [f"{unknown} of {len(ids)} tokens of the text prompt are unknown to the model"] if unknown else []
    return _fitted(embed_tokens(loaded, ids), length, "text", warnings)
