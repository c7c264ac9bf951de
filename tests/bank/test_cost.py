"""What a lookup may cost, counted in evaluations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prompttuner.bank import Entry
from prompttuner.bank.lookup.cost import (
    LEAST_STEPS,
    SCORING_SHARE,
    allowance,
    expected_iterations,
    of_spec,
    plan_race,
    plan_samples,
)
from prompttuner.bank.lookup.race import STEP_COST, RaceSettings, race_cost
from prompttuner.bank.lookup.strategies import STRATEGIES, Layers


def entry(ita: object, start: str = "vocab") -> Entry:
    return Entry("soft", "m", quality={"ita": ita, "start": start})


def test_the_banks_own_jobs_tell_how_many_iterations_to_expect() -> None:
    assert expected_iterations([entry(10), entry(30), entry(20)], 1000) == (20, "median of 3 jobs from the vocabulary")
    assert expected_iterations([entry(10), entry(30)], 1000) == (250, "a quarter of max_iterations")
    found = [entry(8, "bank:12"), entry(9, "bank:12"), entry(10, "text"), entry(50)]
    assert expected_iterations(found, 1000)[0] == 9
    assert expected_iterations([entry(5000)] * 3, 1000)[0] == 1000


def test_entries_that_tell_nothing_sensible_are_passed_over() -> None:
    odd = [None, entry(None), entry("many"), entry(0), entry(-3), Entry("text", "m", text="x")]
    assert expected_iterations(odd, 40) == (10, "a quarter of max_iterations")


def test_a_lookup_costs_at_most_half_of_the_iterations_that_it_can_save() -> None:
    assert allowance((20, ""), 8).evaluations == 10 * 8 * STEP_COST
    assert allowance((2, ""), 8).evaluations == LEAST_STEPS * 8 * STEP_COST
    assert of_spec({"max_iterations": 80, "batch_size": 4}, []).evaluations == 10 * 4 * STEP_COST
    assert of_spec({"batch_size": 1}, []).evaluations == 125 * STEP_COST


@given(
    clusters=st.lists(st.integers(1, 12), min_size=1, max_size=20),
    evaluations=st.integers(1, 5000),
    strategy=st.sampled_from(sorted(STRATEGIES)),
)
def test_scores_keep_to_their_share_unless_four_samples_are_too_many(
    clusters: list[int], evaluations: int, strategy: str
) -> None:
    members, first = [], 0
    for size in clusters:
        members.append(list(range(first, first + size)))
        first += size
    layers = Layers([group[0] for group in members], members)
    samples, cost = plan_samples(strategy, layers, 32, evaluations)
    assert samples in {4, 8, 16, 32}
    assert cost <= SCORING_SHARE * evaluations or samples == 4


@given(finalists=st.integers(2, 12), samples=st.integers(1, 32), batch=st.integers(1, 64), left=st.integers(0, 9000))
def test_a_race_never_costs_more_than_what_is_left(finalists: int, samples: int, batch: int, left: int) -> None:
    settings = RaceSettings()
    plan = plan_race(settings, finalists, samples, batch, left)
    cheapest = race_cost(RaceSettings(2, (2,)), 2, samples, batch)
    if plan is None:
        assert left < cheapest
    else:
        assert race_cost(plan, min(finalists, plan.finalists), samples, batch) <= left
        assert plan.finalists <= settings.finalists and sum(plan.steps) <= sum(settings.steps)
