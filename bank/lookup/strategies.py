"""Ways to find the prompt with the lowest score among many, behind one interface. No model: plain numbers.

An *evaluation* is one candidate on one sample. Each strategy asks a ``Ledger`` for mean losses and narrows the
candidates; where its budget ends, the best so far counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prompttuner.bank.lookup.ledger import Ledger, OutOfBudget, ScoreFn
from prompttuner.protocol.lookup import ScoringRound

__all__ = ["DEFAULT_STRATEGY", "STRATEGIES", "Choice", "Layers", "choose", "full_cost"]

FIRST_SAMPLES = 4
"""Samples of a race's first round."""
KEEP = 3
"""Clusters whose members are looked at; and finalists scored on all samples at the end of a race."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Candidates 0..N-1 in two layers."""

    medoids: Sequence[int]
    members: Sequence[Sequence[int]]
    """By cluster, the medoid included."""
    always: Sequence[int] = ()
    """Candidates outside the clusters (the job's own text): they take part in the last round."""

    @property
    def size(self) -> int:
        """Number of candidates."""
        return len({c for group in self.members for c in group} | set(self.always))


@dataclass(slots=True)
class Choice:
    """What a lookup found, and what it cost."""

    ranking: list[int]
    """Best first; empty when nothing could be scored."""
    scores: dict[int, float]
    """Mean loss of each on the samples it has seen."""
    seen: dict[int, int]
    """How many samples that were."""
    evaluations: int
    cut_short: bool
    """The budget ended before the strategy did."""
    rounds: list[ScoringRound] = field(default_factory=list)
    """For the report: what was scored in each round."""


Strategy = Callable[[Layers, Ledger, list[ScoringRound]], None]


def choose(
    name: str,
    layers: Layers,
    score: ScoreFn,
    samples: int,
    *,
    limit: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    batch: int = 32,
) -> Choice:
    """Run a strategy.

    Args:
        name: a key of ``STRATEGIES``.
        samples: samples that the best candidates are scored on.
        limit: most evaluations; None for no limit.
        stop: True when time is up.
        batch: candidates scored at once.
    """
    ledger = Ledger(score, samples, limit, stop, batch)
    rounds: list[ScoringRound] = []
    cut_short = False
    try:
        STRATEGIES[name](layers, ledger, rounds)
    except OutOfBudget:
        cut_short = True
    ranking = ledger.ranking()
    seen = {c: len(ledger.losses[c]) for c in ranking}
    return Choice(ranking, {c: ledger.mean(c) for c in ranking}, seen, ledger.evaluations, cut_short, rounds)


def full_cost(layers: Layers, samples: int) -> int:
    """Evaluations of brute force: every candidate on every sample."""
    return layers.size * samples


def brute_force(layers: Layers, ledger: Ledger, rounds: list[ScoringRound]) -> None:
    """Every candidate on every sample."""
    every = _unique([c for group in layers.members for c in group], layers.always)
    _note(rounds, "all", every, ledger.samples)
    ledger.means(every, ledger.samples)


def two_layer(layers: Layers, ledger: Ledger, rounds: list[ScoringRound]) -> None:
    """As the paper's text describes it: all medoids, then all members of the best one's cluster, on every sample."""
    first = _unique(layers.medoids, layers.always)
    _note(rounds, "medoids", first, ledger.samples)
    best = _best(layers.medoids, ledger.means(layers.medoids, ledger.samples)) if layers.medoids else []
    ledger.means(layers.always, ledger.samples)
    if best:
        group = layers.members[list(layers.medoids).index(best[0])]
        _note(rounds, "members", group, ledger.samples)
        ledger.means(group, ledger.samples)


def racing(layers: Layers, ledger: Ledger, rounds: list[ScoringRound]) -> None:
    """Successive halving (Jamieson and Talwalkar 2016) over medoids, then over the members of the best few clusters.

    Samples double while candidates halve; the last ``KEEP`` are scored on every sample.
    """
    heads = _halve(layers.medoids, ledger, rounds, "medoids", stop_at=KEEP)
    places = {medoid: number for number, medoid in enumerate(layers.medoids)}
    pool = _unique([c for head in heads for c in layers.members[places[head]]], layers.always)
    finalists = _halve(pool, ledger, rounds, "members", stop_at=KEEP)
    final = _unique(finalists, layers.always)
    _note(rounds, "final", final, ledger.samples)
    ledger.means(final, ledger.samples)


def flat_racing(layers: Layers, ledger: Ledger, rounds: list[ScoringRound]) -> None:
    """Successive halving over all candidates, without layers: what the clusters save shows against it."""
    pool = _unique([c for group in layers.members for c in group], layers.always)
    finalists = _halve(pool, ledger, rounds, "all", stop_at=KEEP)
    final = _unique(finalists, layers.always)
    _note(rounds, "final", final, ledger.samples)
    ledger.means(final, ledger.samples)


def clst(layers: Layers, ledger: Ledger, rounds: list[ScoringRound]) -> None:
    """TRIPLE-CLST (Shi et al., arXiv 2402.09723): fixed-budget best arm over clusters, then within the best ones.

    Our reading of it: half of the budget halves the *clusters* by the best mean of their prompts, all prompts of a
    surviving cluster being sampled alike; the other half runs sequential halving on the prompts that are left.
    The budget is a tenth of brute force unless the ledger has a lower limit.
    """
    budget = max(1, full_cost(layers, ledger.samples) // 10)
    if ledger.limit is not None:
        budget = min(budget, ledger.limit)
    alive = [list(group) for group in layers.members if len(group)]
    levels = max(1, math.ceil(math.log2(max(2, len(alive)))) - 1)
    for _ in range(levels):
        arms = [c for group in alive for c in group]
        if len(alive) <= 2:
            break
        pulls = max(1, int(budget / 2 / levels / max(1, len(arms))))
        seen = min((len(ledger.losses.get(c, ())) for c in arms), default=0)
        count = min(ledger.samples, seen + pulls)
        _note(rounds, "clusters", arms, count)
        means = dict(zip(arms, ledger.means(arms, count), strict=True))
        alive.sort(key=lambda group: min(means[c] for c in group))
        alive = alive[: math.ceil(len(alive) / 2)]
    pool = _unique([c for group in alive for c in group], layers.always)
    phases = max(1, math.ceil(math.log2(max(2, len(pool)))))
    for _ in range(phases if pool else 0):
        pulls = max(1, int(budget / 2 / phases / max(1, len(pool))))
        count = min(ledger.samples, max(len(ledger.losses.get(c, ())) for c in pool) + pulls)
        _note(rounds, "arms", pool, count)
        means_now = ledger.means(pool, count)
        pool = _best(pool, means_now)[: math.ceil(len(pool) / 2)]
        if len(pool) == 1:
            break


STRATEGIES: dict[str, Strategy] = {
    "brute-force": brute_force,
    "two-layer": two_layer,
    "racing": racing,
    "flat-racing": flat_racing,
    "clst": clst,
}
DEFAULT_STRATEGY = "racing"


def _halve(pool: Sequence[int], ledger: Ledger, rounds: list[ScoringRound], label: str, stop_at: int) -> list[int]:
    """Keep the better half on doubled samples until ``stop_at`` are left; a small pool is still ranked once."""
    left = list(pool)
    count = FIRST_SAMPLES
    while left:
        count = min(count, ledger.samples)
        _note(rounds, label, left, count)
        left = _best(left, ledger.means(left, count))
        if len(left) <= stop_at:
            break
        left = left[: max(stop_at, math.ceil(len(left) / 2))]
        if len(left) == stop_at:
            break
        count *= 2
    return left


def _best(candidates: Sequence[int], means: NDArray[np.float64]) -> list[int]:
    return [candidates[i] for i in np.argsort(means, kind="stable")]


def _unique(*groups: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(int(c) for group in groups for c in group))


def _note(rounds: list[ScoringRound], label: str, candidates: Sequence[int], samples: int) -> None:
    rounds.append(ScoringRound(label, len(candidates), samples))
