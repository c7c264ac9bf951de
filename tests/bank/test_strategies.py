"""Lookup strategies on plain numbers: they find the best, cost what they say, and stop when told."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.bank.lookup.ledger import Ledger, OutOfBudget
from prompttuner.bank.lookup.strategies import STRATEGIES, Layers, choose, full_cost


class Table:
    """Losses known beforehand; counts what is asked."""

    def __init__(self, losses: np.ndarray) -> None:
        self.losses = losses
        self.asked: list[tuple[int, int]] = []

    def __call__(self, candidates: Sequence[int], samples: Sequence[int]) -> np.ndarray:
        self.asked += [(c, s) for c in candidates for s in samples]
        return self.losses[np.ix_(list(candidates), list(samples))]


def clustered(groups: int, size: int, samples: int, noise: float = 0.05, seed: int = 0) -> tuple[Table, Layers, int]:
    """Clusters whose level differs; the best prompt is a non-medoid of the best cluster."""
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.permutation(groups).astype(float) + 1.0, size)
    level += rng.uniform(0, 0.3, groups * size)
    best = int(np.argmin(level.reshape(groups, size).mean(axis=1))) * size + size - 1
    level[best] = 0.2
    losses = level[:, None] + rng.normal(0, noise, (groups * size, samples))
    members = [list(range(g * size, (g + 1) * size)) for g in range(groups)]
    return Table(losses), Layers([m[0] for m in members], members), best


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_finds_the_best_prompt_of_clean_clusters(name: str) -> None:
    table, layers, best = clustered(12, 10, 32)
    choice = choose(name, layers, table, 32)
    assert choice.ranking[0] == best
    assert not choice.cut_short
    assert choice.scores[best] == pytest.approx(table.losses[best, : len(table.losses[best])].mean(), abs=0.2)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_counts_every_evaluation_once(name: str) -> None:
    table, layers, _ = clustered(12, 10, 32)
    choice = choose(name, layers, table, 32)
    assert choice.evaluations == len(table.asked) == len(set(table.asked))
    assert choice.evaluations <= full_cost(layers, 32)


@pytest.mark.parametrize("name", ["two-layer", "racing", "clst"])
def test_costs_far_less_than_brute_force(name: str) -> None:
    table, layers, _ = clustered(18, 17, 32)
    assert choose(name, layers, table, 32).evaluations <= 0.15 * full_cost(layers, 32)


def test_cost_grows_less_than_the_bank() -> None:
    costs = []
    for side in (10, 32, 100):
        table, layers, _ = clustered(side, side, 16)
        costs.append(choose("racing", layers, table, 16).evaluations)
    assert costs[2] < 0.3 * costs[0] * 100


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_own_text_always_takes_part(name: str) -> None:
    table, layers, _ = clustered(6, 6, 16)
    losses = np.vstack([table.losses, np.full((1, 16), 0.01)])
    own = len(losses) - 1
    choice = choose(name, Layers(layers.medoids, layers.members, [own]), Table(losses), 16)
    assert choice.ranking[0] == own


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_an_empty_bank_gives_an_empty_choice(name: str) -> None:
    choice = choose(name, Layers([], []), Table(np.zeros((0, 8))), 8)
    assert choice.ranking == [] and choice.evaluations == 0


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(STRATEGIES)),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    samples=st.integers(1, 33),
    limit=st.integers(0, 400),
    seed=st.integers(0, 99),
)
def test_a_budget_is_never_overrun(name: str, sizes: list[int], samples: int, limit: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = Table(rng.normal(size=(sum(sizes), samples)))
    starts = np.cumsum([0, *sizes])
    members = [list(range(a, b)) for a, b in itertools.pairwise(starts)]
    choice = choose(name, Layers([m[0] for m in members], members), table, samples, limit=limit, batch=4)
    assert choice.evaluations == len(table.asked) <= limit
    assert len(set(table.asked)) == len(table.asked)
    assert sorted(choice.ranking) == sorted({c for c, _ in table.asked})


def test_time_up_keeps_the_best_so_far() -> None:
    table, layers, _ = clustered(12, 10, 32)
    clock = iter(range(10_000))
    choice = choose("racing", layers, table, 32, stop=lambda: next(clock) >= 3, batch=4)
    assert choice.cut_short and choice.ranking
    assert choice.scores[choice.ranking[0]] == min(choice.scores.values())


def test_a_refused_candidate_never_wins() -> None:
    table, layers, best = clustered(4, 4, 8)
    table.losses[best] = np.nan
    assert choose("brute-force", layers, table, 8).ranking[0] != best


def test_ledger_scores_only_what_is_new() -> None:
    table = Table(np.arange(12.0).reshape(3, 4))
    ledger = Ledger(table, 4, limit=11)
    assert list(ledger.means([0, 1], 2)) == [0.5, 4.5]
    assert list(ledger.means([0, 2], 4)) == [1.5, 9.5]
    assert ledger.evaluations == 10
    with pytest.raises(OutOfBudget):
        ledger.means([1], 4)
