"""The candidates of one lookup: entries of all banks the job may read, in two layers, and the job's own texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from prompttuner.bank.folder.entry import BadEntry, Entry
from prompttuner.bank.folder.shelf import Bank, Shelf
from prompttuner.bank.index import clusters
from prompttuner.bank.index.shelf_index import load_index, refresh
from prompttuner.bank.lookup.features import DEFAULT_RECIPE, compute_features, embed_text
from prompttuner.bank.lookup.fitting import fit_length
from prompttuner.bank.lookup.strategies import Layers
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.errors import PromptTunerError
from prompttuner.words import Counted

__all__ = ["Candidates", "gather"]

PIECE = 32
"""Prompts whose missing features are computed between two looks at the clock."""
MAX_NAMED = 8
"""Refused entries that are named."""
MAX_ALONE = 64
"""Entries without features that are looked at as clusters of their own; more would make every lookup brute force."""


@dataclass(slots=True)
class Candidates:
    """Numbered candidates 0..N-1 with their two layers."""

    loaded: LoadedModel
    length: int | None
    """Tokens that the job's prompt must have; None: each keeps its own."""
    longest: int | None = None
    """Tokens beyond which a prompt leaves no room for the job's samples; None where the LLM has no limit."""
    names: list[str] = field(default_factory=list)
    """Entry id, or ``own text``, or ``vocab``."""
    shelves: list[Shelf | None] = field(default_factory=list)
    layers: Layers = field(default_factory=lambda: Layers([], []))
    notes: list[str] = field(default_factory=list)
    """What was left out or refused, and why."""
    _tensors: dict[int, Tensor | None] = field(default_factory=dict)
    _entries: dict[int, Entry] = field(default_factory=dict)
    _refused: set[int] = field(default_factory=set)

    def add_own(self, name: str, tensor: Tensor) -> int:
        """A candidate that is in no bank; it takes part in the last round."""
        number = len(self.names)
        self.names.append(name)
        self.shelves.append(None)
        self._tensors[number] = fit_length(tensor, self.length)
        self.layers = Layers(self.layers.medoids, self.layers.members, [*self.layers.always, number])
        return number

    def entry(self, number: int) -> Entry | None:
        """A candidate's description; None for one that is in no bank, or is refused."""
        shelf = self.shelves[number]
        if shelf is None or number in self._refused:
            return None
        if number not in self._entries:
            try:
                self._entries[number] = shelf.read(self.names[number])
            except PromptTunerError as error:
                self._refuse(number, str(error))
                return None
        return self._entries[number]

    def prompt(self, number: int) -> Tensor | None:
        """A candidate's embeddings (tokens, width) at the job's length; None when it is refused."""
        if number not in self._tensors:
            raw = self.raw_prompt(number)
            self._tensors[number] = None if raw is None else fit_length(raw, self.length)
        return self._tensors[number]

    def raw_prompt(self, number: int) -> Tensor | None:
        """The same at its own length."""
        entry, shelf = self.entry(number), self.shelves[number]
        if entry is None or shelf is None:
            return None
        if entry.kind == "text":
            raw = embed_text(self.loaded, entry.text)
        else:
            try:
                raw = from_numpy(shelf.prompt(entry, self.loaded.hidden))
            except BadEntry as error:
                self._refuse(number, str(error))
                return None
        if self.length is None and self.longest is not None and len(raw) > self.longest:
            self._refuse(number, f"its length ({Counted(len(raw), 'token')}) leaves no room for this job's samples")
            return None
        return raw

    def _refuse(self, number: int, why: str) -> None:
        """Never a candidate again; the first few are named, so that a spoilt bank does not fill the report."""
        self._refused.add(number)
        if len(self._refused) <= MAX_NAMED:
            self.notes.append(f"entry {self.names[number][:12]} refused: {why}")
        elif len(self._refused) == MAX_NAMED + 1:
            self.notes.append("more entries refused: 'prompttuner bank check' names all that are damaged")


def gather(
    loaded: LoadedModel,
    model: str,
    bank_dirs: Sequence[Path],
    length: int | None,
    *,
    stop: Callable[[], bool],
    recipe: str = DEFAULT_RECIPE,
    without: Collection[str] = (),
    longest: int | None = None,
) -> Candidates:
    """All entries for an LLM in these banks, with features computed for those that lack them while time allows.

    Entries named in ``without`` are treated as if they did not exist; prompts above ``longest`` tokens are refused, for
    a prompt that keeps its own length.

    Newly computed features are written back where the bank may be written. Nothing here raises for a bad bank or entry:
    what cannot be used is named in ``notes``.
    """
    found = Candidates(loaded, length, longest)
    medoids: list[int] = []
    members: list[list[int]] = []
    seen: set[str] = set(without)
    for folder in bank_dirs:
        try:
            shelf = Bank.open(folder).shelf(model)
            _gather_shelf(found, shelf, seen, (medoids, members), stop=stop, recipe=recipe)
        except (PromptTunerError, OSError) as error:
            if folder != bank_dirs[0] or (folder / "bank.json").exists():  # a user's first job finds no own bank
                found.notes.append(f"bank {folder} not used: {error}")
    found.layers = Layers(medoids, members)
    return found


def _gather_shelf(
    found: Candidates,
    shelf: Shelf,
    seen: set[str],
    layers: tuple[list[int], list[list[int]]],
    *,
    stop: Callable[[], bool],
    recipe: str,
) -> None:
    index = load_index(shelf)
    ids = [entry_id for entry_id in shelf.ids() if entry_id not in seen]
    seen.update(ids)
    first = len(found.names)
    found.names += ids
    found.shelves += [shelf] * len(ids)
    current = index.recipe == recipe and index.known.any()
    rows = {n: index.rows[i] for n, i in enumerate(ids) if current and i in index.rows and index.known[index.rows[i]]}
    missing = [n for n in range(len(ids)) if n not in rows]
    made = _missing_features(found, [first + n for n in missing], stop, recipe)
    groups = _groups(index.features, index.clusters, rows, {n - first: vector for n, vector in made.items()})
    alone = [n for n in missing if first + n not in made]
    if len(alone) > MAX_ALONE:
        rest = Counted(len(alone) - MAX_ALONE, "entry", "entries")
        found.notes.append(f"left out, for want of time to compute features: {rest}")
    groups += [(n, [n]) for n in alone[:MAX_ALONE]]
    for medoid, group in groups:
        layers[0].append(first + medoid)
        layers[1].append([first + n for n in group])
    if made:
        try:
            refresh(shelf, {found.names[n]: vector for n, vector in made.items()}, recipe)
        except OSError as error:
            found.notes.append(f"computed features not kept: {error.strerror}")


def _missing_features(
    found: Candidates, numbers: list[int], stop: Callable[[], bool], recipe: str
) -> dict[int, NDArray[np.float32]]:
    """Features of these candidates, as far as time allows."""
    made: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(numbers), PIECE):
        if stop():
            break
        tensors = {n: raw for n in numbers[start : start + PIECE] if (raw := found.raw_prompt(n)) is not None}
        if tensors:
            vectors = compute_features(found.loaded, list(tensors.values()), recipe)
            made.update(zip(tensors, vectors, strict=True))
    return made


def _groups(
    features: NDArray[np.float32],
    known: clusters.Clusters,
    rows: dict[int, int],
    made: dict[int, NDArray[np.float32]],
) -> list[tuple[int, list[int]]]:
    """(medoid, members) over candidates: the index's clusters, joined by those whose features are new.

    Without clusters in the index, or with as many new features as old ones, clusters are made afresh.
    """
    if len(made) > len(rows):
        numbers = [*rows, *made]
        matrix = np.stack([features[rows[n]] if n in rows else made[n] for n in numbers])
        fresh = clusters.cluster(matrix)
        return [
            (numbers[int(medoid)], [numbers[int(m)] for m in fresh.members(k)])
            for k, medoid in enumerate(fresh.medoids)
        ]
    by_cluster: dict[int, list[int]] = {}
    for number, row in rows.items():
        by_cluster.setdefault(int(known.assign[row]), []).append(number)
    if made and by_cluster:
        heads = sorted(by_cluster)
        near = clusters.unit(np.stack(list(made.values()))) @ clusters.unit(features[known.medoids[heads]]).T
        for number, place in zip(made, near.argmax(axis=1), strict=True):
            by_cluster[heads[int(place)]].append(number)
    medoid_rows = {int(row) for row in known.medoids}
    return [(next((n for n in group if rows.get(n) in medoid_rows), group[0]), group) for group in by_cluster.values()]
