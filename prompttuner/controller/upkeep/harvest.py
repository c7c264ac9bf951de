"""The controller and the Prompt Banks: can a lookup pay, and what a finished job leaves in the own bank."""

from __future__ import annotations

import time
from pathlib import Path

from prompttuner.bank import Bank, add_result
from prompttuner.errors import PromptTunerError
from prompttuner.protocol.files import read_message, understood
from prompttuner.protocol.lookup import LookupReport
from prompttuner.protocol.spec import ResolvedSpec

__all__ = ["BankView", "enter_result"]

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

    def forget(self) -> None:
        """Look again next time: an own prompt has just come in."""
        self._known.clear()


def _has_entries(folder: Path, model: str) -> bool:
    try:
        return bool(Bank.open(folder).shelf(model).ids())
    except (PromptTunerError, OSError):  # no bank, or one that cannot be read: no lookup then
        return False


def enter_result(bank_dir: Path, job_dir: Path, job: str, lookup: LookupReport) -> str:
    """Put a finished job's promoted result into the own bank; done twice it changes nothing.

    Returns:
        Why it could not be entered; empty when all is well. A job never fails for its bank.
    """
    spec = understood(read_message(ResolvedSpec, job_dir / ResolvedSpec.FILE))
    if spec is None or spec.paced is not None or not (job_dir / "result" / "result.json").is_file():
        return ""  # a paced job tunes nothing; one that was stopped before its first evaluation has no result
    try:
        add_result(bank_dir, job_dir / "result", spec.to_json(), job, lookup=lookup)
    except (PromptTunerError, OSError, KeyError) as error:
        return f"{job}: its prompt did not enter the Prompt Bank: {error}"
    return ""
