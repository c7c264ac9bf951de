"""How input and target become text."""

from __future__ import annotations

__all__ = ["CHAT", "DEFAULT_TEMPLATE", "check_template", "split_template"]

CHAT = "chat"
"""The tokenizer's own chat template: the input is the user's message, the target the assistant's answer."""

DEFAULT_TEMPLATE = "{input} {target}"

_USAGE = (
    "it must hold {input} and then {target} once each, such as 'Question: {input}\\nAnswer: {target}', or be 'chat'"
)


def check_template(text: str) -> str:
    """Return ``text`` if it is a template.

    Raises:
        ValueError: a placeholder is missing, doubled or in the wrong order.
    """
    if text == CHAT:
        return text
    if text.count("{input}") != 1 or text.count("{target}") != 1 or text.index("{input}") > text.index("{target}"):
        raise ValueError(f"template {text!r} cannot be used: {_USAGE}")
    return text


def split_template(template: str, source: str, target: str) -> tuple[str, str]:
    """Fill a template in: (text that is given, text that is to be learned).

    The second part starts with the target and includes what the template says after it. Replacement is literal: braces
    in the data mean nothing. ``chat`` is not handled here: it needs the tokenizer.
    """
    head, _, rest = template.partition("{input}")
    between, _, tail = rest.partition("{target}")
    return head + source + between, target + tail
