"""Two layers of prompts: medoids, and the members around each. Pure numpy on feature vectors, cosine distance.

FasterPAM (Schubert and Rousseeuw, arXiv 2008.05171, package ``kmedoids``) finds the medoids; their number comes from
the data by the best medoid silhouette (DynMSC) within a factor of two of sqrt(N), where a two-layer lookup is cheap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import kmedoids
import numpy as np
from numpy.typing import NDArray

__all__ = ["Clusters", "cluster", "insert", "recluster_pays", "redundant", "unit"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SILHOUETTE_SAMPLE = 500
"""K is chosen on at most this many entries: DynMSC is quadratic."""
PAM_SAMPLE = 2000
"""Medoids are sought among at most this many entries (as in CLARA); the others join their nearest."""
COST_SLACK = 1.5
"""Recluster when a lookup has grown this much dearer than with fresh, even clusters ..."""
SPREAD_SLACK = 1.25
"""... or when entries lie this much further from their medoid than they did when it was made."""


@dataclass(slots=True)
class Clusters:
    """Rows refer to the feature matrix that was clustered."""

    medoids: Ints
    """Row of each cluster's representative."""
    assign: Ints
    """Cluster of each row; -1 for a row without features."""
    spread: float
    """Mean cosine distance to the medoid when these clusters were made."""

    def members(self, number: int) -> Ints:
        """Rows of one cluster, its medoid included."""
        return np.flatnonzero(self.assign == number)


def unit(features: NDArray[np.floating]) -> Floats:
    """Rows scaled to length one (zero rows stay zero), so that a dot product is the cosine."""
    rows = np.asarray(features, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1.0), dtype=np.float32)


def cluster(features: NDArray[np.floating], seed: int = 0, k: int | None = None) -> Clusters:
    """Cluster rows (N, D) from scratch. Deterministic in ``seed``; O(min(N, 2000)^2) memory."""
    rows = unit(features)
    n = len(rows)
    if n == 0:
        return Clusters(np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0)
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(n, PAM_SAMPLE, replace=False)) if n > PAM_SAMPLE else np.arange(n)
    k = _choose_k(rows, rng) if k is None else k
    k = min(max(1, k), len(sample))
    if k == len(sample):
        medoids = sample
    else:
        result = kmedoids.fasterpam(_distances(rows[sample]), k, random_state=seed, n_cpu=1)
        medoids = sample[np.sort(np.asarray(result.medoids, dtype=np.int64))]
    assign, spread = _nearest(rows, medoids)
    return Clusters(medoids, assign, spread)


def insert(clusters: Clusters, features: NDArray[np.floating], row: int) -> None:
    """Put one row into the cluster of its nearest medoid, in place; the first row of all becomes a medoid.

    ``features`` holds the row; ``clusters.assign`` is extended as needed.
    """
    missing = row + 1 - len(clusters.assign)
    if missing > 0:
        clusters.assign = np.concatenate([clusters.assign, np.full(missing, -1, np.int64)])
    if len(clusters.medoids) == 0:
        clusters.medoids = np.array([row], dtype=np.int64)
        clusters.assign[row] = 0
        return
    near = unit(features[clusters.medoids]) @ unit(features[row : row + 1])[0]
    clusters.assign[row] = int(np.argmax(near))


def recluster_pays(clusters: Clusters, features: NDArray[np.floating]) -> str:
    """Why clustering anew would make lookups cheaper or better; empty when it would not."""
    placed = np.flatnonzero(clusters.assign >= 0)
    if len(placed) < 8:
        return ""
    sizes = np.bincount(clusters.assign[placed], minlength=len(clusters.medoids))
    cost = len(clusters.medoids) + float((sizes.astype(float) ** 2).sum() / sizes.sum())
    fresh = 2 * math.sqrt(len(placed))
    if cost > COST_SLACK * fresh:
        return f"a lookup scores {cost:.0f} prompts, with fresh clusters about {fresh:.0f}"
    rows = unit(features)
    own = rows[clusters.medoids[clusters.assign[placed]]]
    spread = float(np.mean(1.0 - np.einsum("ij,ij->i", rows[placed], own)))
    if spread > SPREAD_SLACK * max(clusters.spread, 1e-4) and len(placed) > 16:
        return f"entries lie {spread:.3g} from their medoid, {clusters.spread:.3g} when it was chosen"
    return ""


def redundant(
    clusters: Clusters, features: NDArray[np.floating], usefulness: NDArray[np.floating], count: int
) -> list[int]:
    """Rows to drop when the bank is full: of the most similar pair within a cluster the less useful one, repeatedly.

    Args:
        usefulness: one number a row, larger is better; ties drop the later row.
    """
    rows = unit(features)
    pairs: list[tuple[float, int, int]] = []
    for number in range(len(clusters.medoids)):
        members = clusters.members(number)
        if len(members) < 2:
            continue
        near = rows[members] @ rows[members].T
        np.fill_diagonal(near, -2.0)
        keep = min(len(members) - 1, 3)
        best = np.argpartition(-near, keep - 1, axis=1)[:, :keep]
        pairs += [
            (-float(near[i, j]), int(members[i]), int(members[j]))
            for i in range(len(members))
            for j in best[i]
            if i < j or i not in best[j]
        ]
    gone: dict[int, None] = {}
    for _, a, b in sorted(pairs):
        if len(gone) == count:
            break
        if a not in gone and b not in gone:
            gone[min((a, b), key=lambda row: (usefulness[row], -row))] = None
    rest = [int(row) for row in np.lexsort((-np.arange(len(usefulness)), usefulness)) if int(row) not in gone]
    return [*gone, *rest[: count - len(gone)]]


def _choose_k(rows: Floats, rng: np.random.Generator) -> int:
    n = len(rows)
    if n < 8:
        return n
    m = min(n, SILHOUETTE_SAMPLE)
    sample = np.sort(rng.choice(n, m, replace=False))
    low, high = max(2, round(math.sqrt(m) / 2)), max(3, round(math.sqrt(m) * 2))
    result = kmedoids.dynmsc(_distances(rows[sample]), min(high, m - 1), low, random_state=0)
    return max(2, round(float(result.bestk) / math.sqrt(m) * math.sqrt(n)))


def _distances(rows: Floats) -> Floats:
    return np.asarray(np.maximum(1.0 - rows @ rows.T, 0.0), dtype=np.float32)


def _nearest(rows: Floats, medoids: Ints) -> tuple[Ints, float]:
    near = rows @ rows[medoids].T
    assign = near.argmax(axis=1).astype(np.int64)
    assign[medoids] = np.arange(len(medoids))
    return assign, float(np.mean(1.0 - near[np.arange(len(rows)), assign]))
