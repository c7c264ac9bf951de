"""The index of a shelf: features and clusters in one safetensors file, replaced in one rename.

It is a cache: whatever it lacks or gets wrong can be rebuilt from the entries. Readers take the file as it is and
never wait; writers hold a lock while they read, change and replace it.
"""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_tensors

from prompttuner.bank.folder.layout import ID_PATTERN
from prompttuner.bank.folder.shelf import Shelf
from prompttuner.bank.index import clusters as layers
from prompttuner.bank.index.clusters import Clusters
from prompttuner.bank.index.trial_log import read_trials
from prompttuner.files import write_bytes

__all__ = ["DEFAULT_CAPACITY", "Index", "load_index", "refresh"]

DEFAULT_CAPACITY = 3000
"""Entries of one LLM beyond which the most redundant, least useful ones are dropped."""
TRIAL_WEIGHT = 0.5
"""Use of an entry that served a leave-one-out trial best, where a real job that started from it counts one or two."""
LOCK_WAIT_S = 20.0
MAX_BYTES = 1 << 30
"""Of an index file; 30,000 entries of a 7B LLM are a quarter of it."""
SCHEMA = "1"


@dataclass(slots=True)
class Index:
    """One row an entry; a row without features has zeros, and cluster -1."""

    ids: list[str]
    features: NDArray[np.float32]
    """(N, D)"""
    known: NDArray[np.bool_]
    """Which rows have features."""
    clusters: Clusters
    recipe: str = ""
    """How the features were made, such as ``layer=3,pooling=mean``."""
    rows: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = {entry_id: row for row, entry_id in enumerate(self.ids)}

    @classmethod
    def empty(cls) -> Index:
        """An index of nothing: no features, no clusters."""
        none = np.zeros(0, np.int64)
        return cls([], np.zeros((0, 0), np.float32), np.zeros(0, bool), Clusters(none, none, 0.0))

    def missing(self) -> list[str]:
        """Ids of entries whose features are not computed yet."""
        return [self.ids[row] for row in np.flatnonzero(~self.known)]


def load_index(shelf: Shelf) -> Index:
    """The shelf's index; an empty one where there is none, or where it is damaged (it can be rebuilt)."""
    path = _path(shelf)
    for _ in range(3):
        try:
            info = path.lstat()
            if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_BYTES:
                return Index.empty()
            with safe_open(str(path), framework="numpy") as file:
                meta = file.metadata() or {}
                names = set(file.keys())
                if meta.get("schema") != SCHEMA or names != {"features", "known", "medoids", "assign", "spread"}:
                    return Index.empty()
                index = Index(
                    ids=json.loads(meta["ids"]),
                    features=file.get_tensor("features").astype(np.float32),
                    known=file.get_tensor("known").astype(bool),
                    clusters=Clusters(
                        file.get_tensor("medoids").astype(np.int64),
                        file.get_tensor("assign").astype(np.int64),
                        float(file.get_tensor("spread")[0]),
                    ),
                    recipe=meta.get("recipe", ""),
                )
            return index if _sound(index) else Index.empty()
        except FileNotFoundError:
            return Index.empty()
        except (SafetensorError, ValueError, KeyError, IndexError, TypeError, RecursionError):
            return Index.empty()
        except OSError:  # replaced under us on a network file system: read again
            continue
    return Index.empty()


def refresh(
    shelf: Shelf,
    features: dict[str, NDArray[np.floating]] | None = None,
    recipe: str = "",
    *,
    capacity: int = DEFAULT_CAPACITY,
    rebuild: bool = False,
    seed: int = 0,
) -> Index:
    """Bring the index in line with the entries, add features to it, drop what is too much, recluster if it pays.

    Args:
        features: newly computed features by id, (D,) each.
        recipe: how they were made; another recipe than the index has discards its older features.
        rebuild: cluster anew whether it pays or not.

    Returns:
        The index as written; as read, when another writer holds the lock for longer than ``LOCK_WAIT_S``.
    """
    with _locked(shelf) as mine:
        old = load_index(shelf)
        if not mine:
            return old
        if recipe and old.recipe and recipe != old.recipe:
            old = Index(
                old.ids, np.zeros((len(old.ids), 0), np.float32), np.zeros(len(old.ids), bool), _none(len(old.ids))
            )
        index = _sync(old, shelf.ids(), features or {}, recipe or old.recipe)
        if len(index.ids) > capacity:
            index = _replace(shelf, index, len(index.ids) - capacity)
        if rebuild or layers.recluster_pays(index.clusters, index.features):
            _recluster(index, seed)
        write_bytes(_path(shelf), _encode(index), shelf.bank.modes.file)
        return index


def _sync(old: Index, ids: list[str], features: dict[str, NDArray[np.floating]], recipe: str) -> Index:
    """The old index with today's entries: rows that stay keep their order, features and cluster."""
    alive = set(ids)
    kept = [row for row, entry_id in enumerate(old.ids) if entry_id in alive]
    new_ids = [old.ids[row] for row in kept] + [entry_id for entry_id in ids if entry_id not in old.rows]
    width = old.features.shape[1] if old.known.any() else 0
    for vector in features.values():
        width = width or len(vector)
    matrix = np.zeros((len(new_ids), width), np.float32)
    known = np.zeros(len(new_ids), bool)
    if old.features.shape[1] == width:
        matrix[: len(kept)] = old.features[kept]
        known[: len(kept)] = old.known[kept]
    index = Index(new_ids, matrix, known, _keep_clusters(old, kept, len(new_ids)), recipe)
    for entry_id, vector in features.items():
        row = index.rows.get(entry_id)
        if row is not None and len(vector) == width and np.isfinite(vector).all():
            index.features[row] = layers.unit(np.asarray(vector)[None])[0]
            index.known[row] = True
            if index.clusters.assign[row] < 0:
                layers.insert(index.clusters, index.features, row)
    return index


def _keep_clusters(old: Index, kept: list[int], total: int) -> Clusters:
    """Old clusters on new row numbers; a cluster whose medoid went gets its most central member, or goes."""
    place = {row: new for new, row in enumerate(kept)}
    assign = np.full(total, -1, np.int64)
    medoids: list[int] = []
    for number, medoid in enumerate(old.clusters.medoids):
        members = [int(row) for row in old.clusters.members(number) if int(row) in place]
        if not members:
            continue
        if int(medoid) in place:
            head = int(medoid)
        else:
            rows = layers.unit(old.features[members])
            head = members[int(np.argmax(rows @ rows.mean(axis=0)))]
        for row in members:
            assign[place[row]] = len(medoids)
        medoids.append(place[head])
    return Clusters(np.array(medoids, dtype=np.int64), assign, old.clusters.spread)


def _replace(shelf: Shelf, index: Index, count: int) -> Index:
    """Drop ``count`` entries: the most redundant and least useful; those of other users are left."""
    useful = np.zeros(len(index.ids))
    for entry_id, outcomes in shelf.outcomes().items():
        if entry_id in index.rows:
            useful[index.rows[entry_id]] = sum(1.0 + bool(o.get("reached")) for o in outcomes)
    for trial in read_trials(shelf).values():
        if trial.best in index.rows:
            useful[index.rows[trial.best]] += TRIAL_WEIGHT
    for row in layers.redundant(index.clusters, index.features, useful, count):
        with contextlib.suppress(Exception):
            shelf.remove(index.ids[row])
    return _sync(index, shelf.ids(), {}, index.recipe)


def _recluster(index: Index, seed: int) -> None:
    rows = np.flatnonzero(index.known)
    fresh = layers.cluster(index.features[rows], seed)
    assign = np.full(len(index.ids), -1, np.int64)
    assign[rows] = fresh.assign
    index.clusters = Clusters(rows[fresh.medoids], assign, fresh.spread)


def _sound(index: Index) -> bool:
    n = len(index.ids)
    clusters = index.clusters
    medoids, assign = clusters.medoids, clusters.assign
    return (
        all(isinstance(i, str) and ID_PATTERN.fullmatch(i) for i in index.ids)
        and len(index.rows) == n
        and index.features.shape[:1] == index.known.shape == assign.shape == (n,)
        and index.features.ndim == 2
        and bool(np.isfinite(index.features).all())
        and (len(medoids) == 0 or (medoids.min() >= 0 and medoids.max() < n))
        and (n == 0 or (assign.min() >= -1 and assign.max() < len(medoids)))
        and bool((assign[medoids] == np.arange(len(medoids))).all())
    )


def _encode(index: Index) -> bytes:
    tensors = {
        "features": index.features.astype(np.float16),
        "known": index.known.astype(np.uint8),
        "medoids": index.clusters.medoids,
        "assign": index.clusters.assign,
        "spread": np.array([index.clusters.spread], np.float64),
    }
    data: bytes = save_tensors(tensors, {"schema": SCHEMA, "recipe": index.recipe, "ids": json.dumps(index.ids)})
    return data


def _none(n: int) -> Clusters:
    return Clusters(np.zeros(0, np.int64), np.full(n, -1, np.int64), 0.0)


def _path(shelf: Shelf) -> Path:
    return shelf.cache / "index.safetensors"


@contextlib.contextmanager
def _locked(shelf: Shelf) -> Iterator[bool]:
    """Hold the shelf's write lock; False when it cannot be had (busy, or the bank is read-only for this user)."""
    lock = filelock.FileLock(str(shelf.cache / "index.lock"), mode=shelf.bank.modes.lock, timeout=LOCK_WAIT_S)
    try:
        shelf.ensure()
        lock.acquire()
    except (filelock.Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
