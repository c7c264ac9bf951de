"""Sample order as a pure function of seed and step; micro-batches that cover every sample once."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.engine.llm.batching import collate, micro_batches
from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.sampling import WINDOW, SampleOrder

sizes = st.integers(1, 40)


@settings(deadline=None, max_examples=60)
@given(count=sizes, batch=sizes, seed=st.integers(0, 2**63 - 1), bucketing=st.booleans())
def test_every_sample_is_used_equally_often(count: int, batch: int, seed: int, bucketing: bool) -> None:
    lengths = [index * 7 % 11 for index in range(count)] if bucketing else None
    order = SampleOrder(count, batch, seed, lengths)
    used = Counter(index for step in range(count * WINDOW) for index in order.batch(step))
    assert set(used.values()) == {batch * WINDOW}


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(st.integers(0, 500), min_size=1, max_size=20), bucketing=st.booleans())
def test_batches_do_not_depend_on_what_was_asked_before(steps: list[int], bucketing: bool) -> None:
    lengths = list(range(37)) if bucketing else None
    used = SampleOrder(37, 5, 9, lengths)
    for step in steps:
        assert used.batch(step) == SampleOrder(37, 5, 9, lengths).batch(step)


def test_seeds_give_different_orders() -> None:
    assert SampleOrder(100, 50, 0).batch(0) != SampleOrder(100, 50, 1).batch(0)


def test_bucketing_makes_lengths_alike() -> None:
    lengths = [(index * 37) % 100 for index in range(400)]

    def spread(order: SampleOrder) -> int:
        batches = [[lengths[index] for index in order.batch(step)] for step in range(WINDOW)]
        return sum(max(batch) - min(batch) for batch in batches)

    assert spread(SampleOrder(400, 8, 0, lengths)) * 4 < spread(SampleOrder(400, 8, 0))


@settings(deadline=None, max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=24),
    most=st.integers(1, 300),
    overhead=st.integers(0, 100),
)
def test_micro_batches_cover_every_sample_once_within_the_bound(lengths: list[int], most: int, overhead: int) -> None:
    groups = micro_batches(lengths, most, overhead)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= most for group in groups)


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7), overhead=st.integers(0, 40))
def test_micro_batches_cost_least(lengths: list[int], overhead: int) -> None:
    def cost(groups: list[list[int]]) -> int:
        return sum(len(group) * max(lengths[index] for index in group) + overhead for group in groups)

    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    every_cut = []
    for mask in range(2 ** (len(order) - 1)):
        groups: list[list[int]] = [[]]
        for place, index in enumerate(order):
            groups[-1].append(index)
            if place < len(order) - 1 and mask >> place & 1:
                groups.append([])
        every_cut.append(cost(groups))
    assert cost(micro_batches(lengths, 10_000, overhead)) == min(every_cut)


def test_collated_columns_point_at_the_token_before_each_target() -> None:
    batch = collate([Encoded([5, 6, 7], [8, 1], ""), Encoded([], [9], "")], 0, torch.device("cpu"))
    assert batch.ids.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0]]  # nothing follows the last token
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.columns.tolist() == [2, 3, -1]
    assert batch.targets.tolist() == [8, 1, 9]
