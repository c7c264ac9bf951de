"""From samples of text to token ids: templates, chat templates, the end-of-text token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from prompttuner.engine.llm.chat import ChatFrame, chat_frame, split_chat
from prompttuner.engine.llm.generation import AnswerReader
from prompttuner.errors import DataError
from prompttuner.spec.data import Sample
from prompttuner.spec.template import CHAT, split_template

__all__ = ["Encoded", "encode", "split_text"]


class Encoded(NamedTuple):
    """One sample as token ids. ``target`` ends with the end-of-text token where the tokenizer has one."""

    prompt: list[int]
    target: list[int]
    text: str
    """The target as the user wrote it; what a generated answer is compared with."""

    @property
    def length(self) -> int:
        """Tokens of input and target together."""
        return len(self.prompt) + len(self.target)


def encode(
    samples: Sequence[Sample],
    template: str,
    tokenizer: Any,
    *,
    reserve: int = 0,
    max_positions: int | None = None,
    source: str = "data",
    rows: int | None = None,
    reader: AnswerReader | None = None,
) -> list[Encoded]:
    """Encode all samples.

    The part before ``{target}`` gets the tokenizer's special tokens (a begin-of-text token, say), the target gets none
    but the end-of-text token. A blank between both belongs to the target, as byte-pair vocabularies want it.

    Args:
        samples: inputs and targets.
        template: text with ``{input}`` and ``{target}``, or ``chat``.
        tokenizer: a Hugging Face tokenizer.
        reserve: positions taken by the soft prompt.
        max_positions: the model's longest sequence, if known.
        source: what to call the data in a message.
        rows: of the model's input embeddings, if known.
        reader: makes ``text`` what the model would have to say for this very target; without one it is the user's.

    Raises:
        DataError: a sample is too long, its target has no token, or a token that the model has no embedding for; the
            message says which.
        ModelError: ``chat``, but the tokenizer has no chat template.
    """
    frame = chat_frame(tokenizer) if template == CHAT else None
    parts = [split_text(sample, template, tokenizer, frame) for sample in samples]
    special = template != CHAT  # chat templates write their special tokens themselves
    given = tokenizer([head for head, _ in parts], add_special_tokens=special, return_attention_mask=False)["input_ids"]
    learned = tokenizer([tail for _, tail in parts], add_special_tokens=False, return_attention_mask=False)["input_ids"]
    end = tokenizer.eos_token_id
    encoded = []
    for number, (sample, head, tail) in enumerate(zip(samples, given, learned, strict=True), start=1):
        if not tail:
            raise DataError(f"{source}: the target of sample {number} has no token in this model's vocabulary")
        if end is not None and tail[-1] != end and template != CHAT:
            tail = [*tail, end]  # noqa: PLW2901
        if end is not None and len(head) > 1 and head[-1] == end and special:
            head = head[:-1]  # noqa: PLW2901  some tokenizers end every text; here the answer is still to come
        item = Encoded(list(head), list(tail), sample.target if reader is None else reader.text(tail))
        if rows is not None and max(*item.prompt, *item.target, 0) >= rows:
            beyond = next(token for token in (*item.prompt, *item.target) if token >= rows)
            raise DataError(
                f"{source}: sample {number} holds the token {tokenizer.convert_ids_to_tokens(beyond)!r} (id {beyond}), "
                f"and the model has embeddings for {rows} tokens only: the tokenizer was extended without the model"
            )
        if max_positions is not None and item.length + reserve > max_positions:
            raise DataError(
                f"{source}: sample {number} has {item.length} tokens; with {reserve} of the soft prompt that is above "
                f"the model's {max_positions}; shorten or remove it"
            )
        encoded.append(item)
    return encoded


def split_text(sample: Sample, template: str, tokenizer: Any, frame: ChatFrame | None = None) -> tuple[str, str]:
    """The text that is given and the text that is to be learned, for one sample."""
    if template == CHAT:
        return split_chat(sample.input, sample.target, tokenizer, frame or chat_frame(tokenizer))
    head, tail = split_template(template, sample.input, sample.target)
    kept = head.rstrip(" ")
    return (kept, head[len(kept) :] + tail) if kept else (head, tail)
