"""What is kept of a run: best and half-way prompts, iterations to the target, in any order of good and bad numbers."""

from __future__ import annotations

import json
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.engine.history import Evaluation, Progress, meets

LOSS = {"metric": "loss", "op": "<=", "value": 1.0}
MATCH = {"metric": "exact_match", "op": ">=", "value": 0.8}
numbers = st.one_of(st.floats(0, 10), st.just(math.nan))


def record(target: dict, values: list[tuple[float, float]]) -> Progress:
    """Evaluations of (metric, loss); the prompt of step n is filled with n."""
    progress = Progress(target)
    for step, (metric, loss) in enumerate(values):
        progress.add(Evaluation(step, loss, metric, None, 0.0), torch.full((1, 2), float(step)))
    return progress


def test_half_way_prompt_is_the_first_beyond_the_middle() -> None:
    progress = record(LOSS, [(9.0, 9.0), (6.0, 6.0), (4.9, 4.9), (2.0, 2.0), (0.5, 0.5)])
    assert (progress.early_step, progress.ita, progress.best_step) == (2, 4, 4)
    assert torch.equal(progress.early_prompt, torch.full((1, 2), 2.0))


def test_ties_of_the_metric_are_decided_by_the_loss() -> None:
    progress = record(MATCH, [(0.0, 5.0), (0.0, 3.0), (0.0, 4.0)])
    assert progress.best_step == 1


def test_not_a_number_never_meets_a_target() -> None:
    assert not meets(LOSS, math.nan)
    assert not meets(MATCH, math.nan)
    assert meets(LOSS, 1.0)
    assert meets(MATCH, 0.8)


@settings(deadline=None, max_examples=150)
@given(target=st.sampled_from([LOSS, MATCH]), values=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12))
def test_best_is_never_beaten_and_survives_being_stored(target: dict, values: list[tuple[float, float]]) -> None:
    progress = record(target, values)
    metrics = [metric for metric, _ in values if not math.isnan(metric)]
    best = progress.best
    assert best is not None
    assert torch.equal(progress.best_prompt, torch.full((1, 2), float(best.step)))
    if metrics:
        assert best.metric == (min(metrics) if target is LOSS else max(metrics))
    first = next((step for step, (metric, _) in enumerate(values) if meets(target, metric)), None)
    assert progress.ita == first
    again = Progress.restore(target, json.loads(json.dumps(progress.to_json())), progress.tensors())
    assert json.dumps(again.to_json()) == json.dumps(progress.to_json())
    assert again.best_step == progress.best_step
