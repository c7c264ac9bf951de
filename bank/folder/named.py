"""The entry that a user names by the beginning of its id. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from prompttuner.bank.folder.shelf import Bank, Shelf
from prompttuner.errors import NotFound, PromptTunerError, SpecError
from prompttuner.protocol.initial import InitialPrompt
from prompttuner.protocol.spec import ResolvedSpec

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


def resolve_entry(spec: ResolvedSpec, bank_dirs: Iterable[Path]) -> ResolvedSpec:
    """The spec with the whole id in place of the beginning that its ``bank:ENTRY`` gives.

    Raises:
        NotFound, SpecError: as `named_entry`.
    """
    if spec.initial_prompt.kind != "entry":
        return spec
    entry_id = named_entry(bank_dirs, spec.model, spec.initial_prompt.value)[1]
    return replace(spec, initial_prompt=InitialPrompt("entry", entry_id))
