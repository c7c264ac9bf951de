"""Whether targets survive the tokenizer: what it has no token for cannot be learned, and would look as if it were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prompttuner.errors import DataError
from prompttuner.spec.data import Sample
from prompttuner.spec.text import shorten

__all__ = ["Survival", "check_targets", "survival"]


@dataclass(frozen=True)
class Survival:
    """How the targets of a data set come back from token ids."""

    targets: int
    unknown: int
    """So many hold a token that the vocabulary does not have."""
    changed: int
    """So many come back as another text, blanks aside (capitals lost, say); unknown ones among them."""
    example: str
    """One that does not survive, in words; empty where all do."""


def survival(samples: Sequence[Sample], tokenizer: Any) -> Survival:
    """Encode and decode all targets."""
    targets = [sample.target for sample in samples]
    rows = tokenizer(targets, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=False)
    missing, word = tokenizer.unk_token_id, tokenizer.unk_token
    unknown = changed = 0
    example = ""
    for number, (target, ids, text) in enumerate(zip(targets, rows, texts, strict=True), start=1):
        lacks = missing is not None and missing in ids and str(word) not in target
        differs = "".join(text.split()) != "".join(target.split())
        if (lacks and not unknown) or (differs and not example):
            example = f"sample {number}: {shorten(target)!r} becomes {shorten(text)!r}"
        unknown += lacks
        changed += lacks or differs
    return Survival(len(targets), unknown, changed, example)


def check_targets(samples: Sequence[Sample], tokenizer: Any, source: str, allow_unknown: bool) -> str:
    """What to tell the user about targets that do not survive; empty where all do.

    Raises:
        DataError: unknown tokens are among them, and ``allow_unknown`` is not set.
    """
    found = survival(samples, tokenizer)
    if found.unknown and not allow_unknown:
        raise DataError(
            f"{source}: {found.unknown} of {found.targets} targets hold what this model's vocabulary has no token for "
            f"({found.example}), which no prompt can make it say; use another model or other data, or set "
            "allow_unknown_tokens = true"
        )
    if not found.changed:
        return ""
    return (
        f"{source}: {found.changed} of {found.targets} targets do not survive this model's tokenizer ({found.example})"
    )
