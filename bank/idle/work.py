"""Work for warm agents that have no job: features and trials that the bank lacks, in small pieces, given up at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from prompttuner.bank.folder.entry import BadEntry
from prompttuner.bank.folder.shelf import Bank, Shelf
from prompttuner.bank.idle.trials import run_trials
from prompttuner.bank.index.shelf_index import load_index, refresh
from prompttuner.bank.lookup.features import DEFAULT_RECIPE, compute_features, embed_text
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.errors import PromptTunerError

__all__ = ["IdleWork", "idle_work"]

PIECE = 8
"""Prompts between two questions whether to stop: some 10 ms on the small model, one short pass on a large one."""
KEPT_EVERY = 64
"""The index is rewritten after this many."""


@dataclass(frozen=True, slots=True)
class IdleWork:
    """What was done."""

    features: int = 0
    """Entries whose features were computed."""
    trials: int = 0
    """Leave-one-out trials that were finished."""


def idle_work(
    bank_dir: Path, loaded: LoadedModel, should_stop: Callable[[], bool], model: str | None = None
) -> IdleWork:
    """Compute what the own bank lacks for this LLM: features of entries, then leave-one-out trials of known tasks.

    One process a shelf does so at a time; another comes back with nothing done.

    Args:
        bank_dir: a bank that this user may write.
        loaded: the agent's LLM.
        should_stop: asked before each piece of at most eight prompts, and each tuning step; True ends the work,
            nothing done is lost.
        model: hub id or folder of the LLM; by default its name.
    """
    try:
        shelf = Bank.open(bank_dir).shelf(model or loaded.name)
        if not shelf.ids():
            return IdleWork()
        # The lock goes with its process: one that is killed for a lease leaves nothing behind.
        with filelock.FileLock(str(shelf.root / "idle.lock"), mode=shelf.bank.modes.lock, timeout=0):
            features = _compute_features(shelf, loaded, should_stop)
            return IdleWork(features, 0 if should_stop() else run_trials(shelf, loaded, should_stop))
    except (PromptTunerError, OSError):  # no bank, a full disk, another agent at it (filelock.Timeout is an OSError)
        return IdleWork()


def _compute_features(shelf: Shelf, loaded: LoadedModel, should_stop: Callable[[], bool]) -> int:
    """Missing features of entries, and an index in order; number of entries whose features were computed."""
    index = load_index(shelf)
    have = set(index.ids) - set(index.missing()) if index.recipe == DEFAULT_RECIPE else set()
    missing = [entry_id for entry_id in shelf.ids() if entry_id not in have]
    made: dict[str, NDArray[np.float32]] = {}
    done = 0
    for start in range(0, len(missing), PIECE):
        if should_stop():
            break
        tensors = {i: t for i in missing[start : start + PIECE] if (t := _tensor(shelf, i, loaded)) is not None}
        if tensors:
            vectors = compute_features(loaded, list(tensors.values()), DEFAULT_RECIPE)
            made.update(zip(tensors, vectors, strict=True))
            done += len(tensors)
        if len(made) >= KEPT_EVERY:
            refresh(shelf, made, DEFAULT_RECIPE)
            made = {}
    if made:
        refresh(shelf, made, DEFAULT_RECIPE)
    return done


def _tensor(shelf: Shelf, entry_id: str, loaded: LoadedModel) -> Tensor | None:
    """An entry's prompt; None for one that is refused: ``bank check`` says why."""
    try:
        entry = shelf.read(entry_id)
        if entry.kind == "text":
            return embed_text(loaded, entry.text)
        return from_numpy(shelf.prompt(entry, loaded.hidden))
    except (BadEntry, PromptTunerError):
        return None
