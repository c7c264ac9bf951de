"""The words of ``initial_prompt`` that mean the Prompt Bank."""

from __future__ import annotations

import re

__all__ = ["BANK", "bank_entry", "forces_lookup", "wants_lookup"]

BANK = "bank"
_ENTRY = re.compile(r"bank:([0-9a-fA-F]{4,40})")


def wants_lookup(text: str) -> bool:
    """Whether this asks for a lookup: ``auto`` where it pays, ``bank`` in any case."""
    return text in {"auto", BANK}


def forces_lookup(text: str) -> bool:
    """Whether a lookup is made whatever is expected of it."""
    return text == BANK


def bank_entry(text: str) -> str | None:
    """The entry that ``bank:ENTRY`` names (its id, or the beginning of it); None for anything else."""
    found = _ENTRY.fullmatch(text)
    return found.group(1).lower() if found else None
