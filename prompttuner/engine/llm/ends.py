"""The end-of-text token that a target is learned with: the tokenizer's, else the model's."""

from __future__ import annotations

from typing import Any

__all__ = ["adopt_end", "stated_end"]


def stated_end(tokenizer: Any, model: Any) -> int | None:
    """The id of the end-of-text token; None where nothing states one.

    The tokenizer's own comes first, then the generation config's, then the config's; the first of several. A folder
    with ``tokenizer.json`` alone has a tokenizer that names none.
    """
    places = (tokenizer, getattr(model, "generation_config", None), getattr(model, "config", None))
    for place in places:
        found = getattr(place, "eos_token_id", None)
        if isinstance(found, list | tuple):
            found = found[0] if found else None
        if found is not None:
            return int(found)
    return None


def adopt_end(tokenizer: Any, model: Any) -> None:
    """Let a tokenizer that names no end of text take the model's, if its vocabulary has that token.

    So encoding, answers, and whatever else asks the tokenizer, go by one rule.
    """
    if getattr(tokenizer, "eos_token_id", None) is not None or not hasattr(tokenizer, "convert_ids_to_tokens"):
        return
    end = stated_end(tokenizer, model)
    if end is not None and 0 <= end < len(tokenizer):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
