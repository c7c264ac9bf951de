"""Greedy answers that depend on the model alone: a generation config of our own, end tokens, and what is compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from prompttuner.engine.llm.chat import ChatFrame, chat_frame
from prompttuner.spec.template import CHAT

__all__ = ["AnswerReader", "end_tokens", "own_generation_config"]

KEPT = ("bos_token_id", "eos_token_id", "pad_token_id")


class Speaking(Protocol):
    """A loaded model, as far as its answers are concerned."""

    model: Any
    tokenizer: Any


def own_generation_config(source: str, config: Any) -> Any:
    """A generation config with the model's begin, end and pad tokens, and nothing else of what its folder says.

    Penalties, forbidden tokens, beams and the like are meant for chatting; evaluation is plain greedy decoding.

    Args:
        source: folder or hub id.
        config: the model's config, for models without a generation config.
    """
    from transformers import GenerationConfig

    stored = _stored(source)
    text = config.get_text_config()
    own = {key: stored.get(key, getattr(text, key, None)) for key in KEPT}
    return GenerationConfig(**{key: value for key, value in own.items() if value is not None})


def end_tokens(loaded: Speaking) -> frozenset[int]:
    """Tokens that end an answer: those of the model's generation config, and the tokenizer's end of text."""
    told = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    return frozenset([*_ids(told), *_ids(loaded.tokenizer.eos_token_id)])


@dataclass(frozen=True)
class AnswerReader:
    """From token ids to the text that is compared: what was generated, and the target as the tokenizer has it."""

    tokenizer: Any
    ends: frozenset[int]
    frame: ChatFrame | None = None

    @classmethod
    def of(cls, loaded: Speaking, template: str | None = None) -> AnswerReader:
        """For a model and a template (``chat`` ends a turn with a token of its own, and may write around an answer)."""
        ends = end_tokens(loaded)
        if template != CHAT:
            return cls(loaded.tokenizer, ends)
        frame = chat_frame(loaded.tokenizer)
        closing = loaded.tokenizer(frame.closing, add_special_tokens=False)["input_ids"]
        special = set(loaded.tokenizer.all_special_ids)
        return cls(loaded.tokenizer, ends | {i for i in closing[:1] if i in special}, frame)

    def text(self, ids: Sequence[int] | torch.Tensor) -> str:
        """What ids say up to the first end token, without special tokens and without what a chat template adds."""
        row = torch.as_tensor(ids, dtype=torch.int64)
        stop = next((index for index, token in enumerate(row.tolist()) if token in self.ends), len(row))
        text: str = self.tokenizer.batch_decode([row[:stop]], skip_special_tokens=True)[0]
        return text if self.frame is None else self.frame.unframed(text)


def _stored(source: str) -> dict[str, Any]:
    """The raw generation_config.json, which transformers itself might refuse; empty without one."""
    from transformers.utils import cached_file

    try:
        name = cached_file(source, "generation_config.json")
        value = None if name is None else json.loads(Path(name).read_bytes())
    except (OSError, ValueError):
        value = None
    return value if isinstance(value, dict) else {}


def _ids(value: int | Iterable[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else [int(token) for token in value]
