"""The entry that a user names by the beginning of its id. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prompttuner.bank.folder.shelf import Bank, Shelf
from prompttuner.errors import NotFound, PromptTunerError, SpecError
from prompttuner.spec.initial import bank_entry

__all__ = ["named_entry", "resolve_entry"]


def named_entry(bank_dirs: Iterable[Path], model: str, beginning: str) -> tuple[Shelf, str]:
    """The shelf and the id of the one entry for an LLM that begins so; the first bank that has it counts.

    Raises:
        NotFound: none does.
        SpecError: several do.
    """
    found: dict[str, Shelf] = {}
    for folder in bank_dirs:
        try:
            shelf = Bank.open(folder).shelf(model)
            for entry_id in shelf.find(beginning):
                found.setdefault(entry_id, shelf)
        except (PromptTunerError, OSError):  # no bank, or one that cannot be read
            continue
    if not found:
        raise NotFound(
            f"no entry {beginning!r} for {model} in the Prompt Banks in reach; 'prompttuner bank list' names them"
        )
    if len(found) > 1:
        raise SpecError(f"{beginning!r} begins {len(found)} entries ({', '.join(sorted(found)[:3])}); give more of it")
    entry_id, shelf = next(iter(found.items()))
    return shelf, entry_id


def resolve_entry(resolved: dict[str, Any], bank_dirs: Iterable[Path]) -> None:
    """Put the whole id in place of the beginning that a resolved spec's ``bank:ENTRY`` gives.

    Raises:
        NotFound, SpecError: as `named_entry`.
    """
    if beginning := bank_entry(str(resolved["initial_prompt"])):
        entry_id = named_entry(bank_dirs, str(resolved["model"]), beginning)[1]
        resolved["initial_prompt"] = f"bank:{entry_id}"
