"""What a task is made of: pairs of input and target, and how they are dealt out to train, eval and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["SPLITS", "Pair", "deal", "unique"]

SPLITS = ("test", "eval", "train")
"""In the order in which they are served: what a small task lacks is missing from its training data."""


class Pair(NamedTuple):
    """One sample. Pairs with the same ``key`` (the word or number that they are about) are in the same split."""

    input: str
    target: str
    key: str


def unique(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs without those whose input has appeared before (a word with two answers would teach neither)."""
    seen: set[str] = set()
    kept = []
    for pair in pairs:
        if pair.input.casefold() not in seen:
            seen.add(pair.input.casefold())
            kept.append(pair)
    return kept


def deal(name: str, pairs: Sequence[Pair], seed: int, sizes: dict[str, int]) -> dict[str, list[Pair]]:
    """Pairs by split.

    Which key is in which split is a pure function of the task's name and the key, so that no seed trains on what
    another one tests; the seed decides which of a split's pairs are taken, and their order.

    Args:
        name: the task's.
        pairs: all there are.
        seed: of the choice within a split.
        sizes: most pairs by split.
    """
    keys = sorted({pair.key for pair in pairs}, key=lambda key: _rank(f"{name}/{key}"))
    share = {"test": 0.2, "eval": 0.2, "train": 0.6}
    ends = {"test": round(len(keys) * share["test"])}
    ends["eval"] = ends["test"] + round(len(keys) * share["eval"])
    place = {key: "test" if n < ends["test"] else "eval" if n < ends["eval"] else "train" for n, key in enumerate(keys)}
    found: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for pair in sorted(pairs, key=lambda pair: _rank(f"{name}/{seed}/{pair.input}")):
        part = found[place[pair.key]]
        if len(part) < sizes[place[pair.key]]:
            part.append(pair)
    return found


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
