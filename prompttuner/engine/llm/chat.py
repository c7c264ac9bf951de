"""Chat templates: what a template writes before, between and after the user's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prompttuner.errors import ModelError

__all__ = ["ChatFrame", "chat_frame", "split_chat"]

QUESTION, ANSWER = "prompttuner-question", "prompttuner-answer"


@dataclass(frozen=True)
class ChatFrame:
    """What a chat template adds around an answer."""

    before: str
    """Between the beginning of the assistant's turn and the answer, such as an empty ``<think></think>``."""
    closing: str
    """After the answer: the end of the turn."""

    def unframed(self, answer: str) -> str:
        """An answer without what the template adds."""
        text = answer.strip()
        for start in (self.before.strip(), "".join(self.before.split())):
            if start and text.startswith(start):
                text = text.removeprefix(start).lstrip()
                break
        return text.removesuffix(self.closing.strip()).rstrip() if self.closing.strip() else text


def chat_frame(tokenizer: Any) -> ChatFrame:
    """What the tokenizer's chat template adds around any answer, found with a made-up one.

    Raises:
        ModelError: there is no chat template, or it cannot be used.
    """
    head, whole = _rendered(tokenizer, QUESTION, ANSWER)
    at = whole.rfind(ANSWER)
    closing = (whole[at + len(ANSWER) :].rstrip("\n") if at >= 0 else "") or tokenizer.eos_token or ""
    before = whole[len(head) : at] if at >= 0 and whole.startswith(head) else ""
    return ChatFrame(before, closing)


def split_chat(source: str, target: str, tokenizer: Any, frame: ChatFrame) -> tuple[str, str]:
    """The text that is given, and the text that is to be learned: the user's target and the template's closing.

    What the template writes of its own before an answer (an empty thinking, say) belongs to what is given.
    """
    user = {"role": "user", "content": source}
    head = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    return head + frame.before, target + frame.closing


def _rendered(tokenizer: Any, source: str, target: str) -> tuple[str, str]:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "template 'chat': this model's tokenizer has no chat template; write one with {input} and {target}"
        )
    user, answer = {"role": "user", "content": source}, {"role": "assistant", "content": target}
    try:
        head = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
        return head, tokenizer.apply_chat_template([user, answer], tokenize=False)
    except Exception as error:  # a template is a program of the model's author
        raise ModelError(f"template 'chat': the model's chat template cannot be used: {error}") from None
