"""The small language of ``initial_prompt``, parsed here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

__all__ = ["AUTO", "InitialPrompt"]

_WORDS = ("auto", "random", "vocab")
_TEXT = "text:"
_FILE = ".safetensors"


@dataclass(frozen=True, slots=True)
class InitialPrompt:
    """Where tuning begins: ``auto`` (the Prompt Bank), ``random``, ``vocab``, ``text:...``, or a .safetensors file."""

    kind: Literal["auto", "random", "vocab", "text", "file"]
    value: str = ""
    """The text, or the file's path."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what a user writes.

        Raises:
            ValueError: it is none of the forms; the message names them.
        """
        if text in _WORDS:
            return cls(text)  # type: ignore[arg-type]
        if text.startswith(_TEXT):
            words = text.removeprefix(_TEXT).strip()
            if not words:
                raise ValueError("initial_prompt 'text:' holds no text")
            return cls("text", words)
        if text.endswith(_FILE):
            return cls("file", text)
        raise ValueError(f"initial_prompt {text!r} is none of auto, random, vocab, text:..., or a .safetensors file")

    def __str__(self) -> str:
        return self.kind if self.kind in _WORDS else f"{_TEXT}{self.value}" if self.kind == "text" else self.value

    @property
    def has_own_length(self) -> bool:
        """Whether the prompt that is found, written or read says itself how many virtual tokens it has."""
        return self.kind in {"auto", "text", "file"}


AUTO = InitialPrompt("auto")
