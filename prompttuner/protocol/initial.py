"""The small language of ``initial_prompt``, parsed here and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self

__all__ = ["AUTO", "InitialPrompt"]

_WORDS = ("auto", "bank", "random", "vocab")
_ENTRY = "bank:"
_TEXT = "text:"
_FILE = ".safetensors"
_ID = re.compile(r"[0-9a-f]{4,40}")


@dataclass(frozen=True, slots=True)
class InitialPrompt:
    """Where tuning begins.

    ``auto`` (looked up in the Prompt Bank where that may pay), ``bank`` (looked up in any case), ``bank:ENTRY``,
    ``random``, ``vocab``, ``text:...``, or a .safetensors file.
    """

    kind: Literal["auto", "bank", "entry", "random", "vocab", "text", "file"]
    value: str = ""
    """The entry's id or the beginning of it, the text, or the file's path."""

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
        if text.startswith(_ENTRY) and _ID.fullmatch(beginning := text.removeprefix(_ENTRY).lower()):
            return cls("entry", beginning)
        if text.endswith(_FILE):
            return cls("file", text)
        if text.startswith(_ENTRY):
            raise ValueError(
                f"initial_prompt {text!r}: after 'bank:' comes an entry's id, or its first 4 digits or more"
            )
        forms = "auto, bank, bank:ENTRY, random, vocab, text:..., or a .safetensors file"
        raise ValueError(f"initial_prompt {text!r} is none of {forms}")

    def __str__(self) -> str:
        prefix = {"text": _TEXT, "entry": _ENTRY}.get(self.kind, "")
        return self.kind if self.kind in _WORDS else f"{prefix}{self.value}"

    @property
    def has_own_length(self) -> bool:
        """Whether the prompt that is found, written or read says itself how many virtual tokens it has."""
        return self.kind in {"auto", "bank", "entry", "text", "file"}

    @property
    def is_looked_up(self) -> bool:
        """Whether the Prompt Bank is asked what fits the job."""
        return self.kind in {"auto", "bank"}


AUTO = InitialPrompt("auto")
