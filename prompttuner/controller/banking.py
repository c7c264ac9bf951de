"""The controller and the Prompt Banks: can a lookup pay."""

from __future__ import annotations

import time
from pathlib import Path

from prompttuner.bank import Bank
from prompttuner.errors import PromptTunerError

__all__ = ["BankView"]

FRESH_S = 30.0


class BankView:
    """Whether banks hold prompts for an LLM, looked up rarely: a tick must not walk through folders."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self._folders = folders
        self._known: dict[str, tuple[float, bool]] = {}

    def holds(self, model: str) -> bool:
        """True if any bank in reach has an entry for this LLM."""
        at, answer = self._known.get(model, (float("-inf"), False))
        now = time.monotonic()
        if now - at > FRESH_S:
            answer = any(_has_entries(folder, model) for folder in self._folders)
            self._known[model] = (now, answer)
        return answer


def _has_entries(folder: Path, model: str) -> bool:
    try:
        return bool(Bank.open(folder).shelf(model).ids())
    except (PromptTunerError, OSError):  # no bank, or one that cannot be read: no lookup then
        return False
