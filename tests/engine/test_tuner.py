"""The tuner: same result for any number of members, exact resume, nothing changed by a failed step."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.state import pack, unpack
from prompttuner.engine.tuner import Tuner, read_data
from prompttuner.errors import DataError, PromptTunerError, SpecError, StateError


class Threads:
    """Members as threads of this process that sum by turns."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.parts: list[torch.Tensor | None] = [None] * world
        self.barrier = threading.Barrier(world)

    def member(self, rank: int) -> Any:
        shared = self

        class Member:
            world = shared.world

            def all_reduce_(self, tensor: torch.Tensor) -> None:
                shared.parts[rank] = tensor.clone()
                shared.barrier.wait()
                total = torch.stack([part for part in shared.parts if part is not None]).sum(0)
                shared.barrier.wait()
                tensor.copy_(total)

        member = Member()
        member.rank = rank  # type: ignore[attr-defined]
        return member


class Broken:
    rank, world = 0, 2

    def all_reduce_(self, tensor: torch.Tensor) -> None:
        raise RuntimeError("a member was lost")


def run_together(tuners: list[Tuner], steps: int) -> list[list[Any]]:
    """Let all tuners do ``steps`` iterations together, each in its own thread; returns their outcomes."""
    group = Threads(len(tuners))
    outcomes: list[list[Any]] = [[] for _ in tuners]
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            torch.set_num_threads(1)
            for _ in range(steps):
                if tuners[rank].evaluation_due:
                    tuners[rank].evaluate(group.member(rank))
                outcomes[rank].append(tuners[rank].train_step(group.member(rank), [float(rank), 1.0]))
        except BaseException as error:
            group.barrier.abort()
            errors.append(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(tuners))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return outcomes


def finish(tuner: Tuner) -> Tuner:
    while not tuner.finished:
        if tuner.evaluation_due:
            tuner.evaluate()
        else:
            tuner.train_step()
    return tuner


def test_loss_falls_and_the_target_is_reached_at_an_evaluation(make_spec: Callable, make_tuner: Callable) -> None:
    target = {"metric": "loss", "op": "<=", "value": 1.0}
    tuner = make_tuner(make_spec("reverse+next2", target=target, max_iterations=60, eval_every=5, learning_rate=0.03))
    finish(tuner)
    first, last = tuner.progress.evaluations[0], tuner.progress.evaluations[-1]
    assert first.metric > 1.0 >= last.metric
    assert tuner.outcome == "reached"
    assert tuner.ita == last.step == tuner.step_index
    assert tuner.ita % 5 == 0
    assert torch.equal(tuner.result_prompt, tuner.prompt)
    assert 0 < tuner.progress.early_step <= tuner.ita


def test_exhausted_job_keeps_its_best_prompt(make_spec: Callable, make_tuner: Callable) -> None:
    tuner = finish(make_tuner(make_spec(max_iterations=9, eval_every=4, learning_rate=1.0)))
    assert tuner.outcome == "exhausted"
    assert tuner.ita is None
    assert [row.step for row in tuner.progress.evaluations] == [0, 4, 8, 9]
    best = min(tuner.progress.evaluations, key=lambda row: row.loss)
    assert tuner.progress.best == best
    assert not torch.equal(tuner.result_prompt, tuner.prompt) or best.step == 9


@pytest.mark.parametrize("bucketing", [False, True])
def test_changing_members_end_with_the_prompt_of_a_single_one(
    make_spec: Callable, make_tuner: Callable, bucketing: bool
) -> None:
    spec = make_spec(max_iterations=100, batch_size=6, bucketing=bucketing)
    alone = make_tuner(spec)
    [expected] = run_together([alone], 9)
    tuners = [make_tuner(spec)]
    seen = run_together(tuners, 3)[0]
    for world in (3, 2):
        newcomers = [make_tuner(spec) for _ in range(max(0, world - len(tuners)))]
        for newcomer in newcomers:
            newcomer.load_state(unpack(pack(tuners[0].state())))
        tuners = [*tuners, *newcomers][:world]
        outcomes = run_together(tuners, 3)
        assert outcomes[0][0].flags == [sum(range(world)), float(world)]
        for step in range(3):
            ids = [index for member in outcomes for index in member[step].ids]
            assert sorted(ids) == sorted(expected[len(seen) + step].ids)
        seen += outcomes[0]
    assert [row.loss for row in seen] == pytest.approx([row.loss for row in expected], abs=1e-5)
    assert [row.samples for row in seen] == [6] * 9
    for tuner in tuners:
        torch.testing.assert_close(tuner.prompt, alone.prompt, rtol=0, atol=2e-5)
    assert torch.equal(tuners[0].prompt, tuners[1].prompt)
    losses = [[row.loss for row in tuner.progress.evaluations] for tuner in (tuners[0], alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("metric", ["exact_match", "rougeL"])
def test_generated_metrics_do_not_depend_on_the_number_of_members(
    make_spec: Callable, make_tuner: Callable, metric: str
) -> None:
    text = "text: reverse the letters then shift up two :"
    spec = make_spec(
        "reverse+next2",
        target={"metric": metric, "op": ">=", "value": 1.0},
        initial_prompt=text,
        prompt_length=None,
        max_iterations=100,
        evaluation=13,
        learning_rate=1e-6,
    )
    alone, both = make_tuner(spec), [make_tuner(spec), make_tuner(spec)]
    single = alone.evaluate()
    run_together(both, 1)
    assert both[0].progress.evaluations[0].metric == pytest.approx(single.metric, abs=1e-12)
    assert both[0].progress.evaluations[0].loss == pytest.approx(single.loss, abs=1e-6)
    assert single.metric > 0.5  # the model follows this instruction


def differences(make_tuner: Callable, spec: dict[str, Any], steps: int = 2) -> list[float]:
    """How far the loss of each step is from a single member's when two of three members share its samples."""
    alone, three = make_tuner(spec), [make_tuner(spec) for _ in range(3)]
    [expected] = run_together([alone], steps)
    outcomes = run_together(three, steps)
    assert outcomes[2][0].ids == [], "the third has none"
    return [abs(one.loss - other.loss) for one, other in zip(outcomes[0], expected, strict=True)]


def test_more_members_than_samples_is_still_exact(make_spec: Callable, make_tuner: Callable) -> None:
    """Where matrix kernels do not depend on the size of a batch (as on the CPUs that this was written on), all
    differences are 0. Elsewhere a sample's loss is rounded in its own way: at losses of 3 to 10 some 6e-7, and in the
    second step some 3e-6, since AdamW's first update magnifies the rounding of small components of the gradient."""
    first, second = differences(make_tuner, make_spec(batch_size=2, max_iterations=100))
    assert first <= 1e-6
    assert second <= 1e-5


def test_in_float64_members_differ_by_nothing_but_the_rounding_of_the_prompt(
    make_spec: Callable, small: LoadedModel
) -> None:
    """With a float64 model rounding is out of the way on any machine; the prompt itself stays float32."""

    def make(spec: dict[str, Any]) -> Tuner:
        loaded = replace(small, model=copy.deepcopy(small.model).to(torch.float64))
        return Tuner(loaded, spec, read_data(spec), initial_prompt(spec, loaded))

    first, second = differences(make, make_spec(batch_size=2, max_iterations=100))
    assert first <= 1e-12
    assert second <= 1e-6


def test_failed_step_changes_nothing(make_spec: Callable, make_tuner: Callable) -> None:
    tuner = make_tuner(make_spec())
    tuner.train_step()
    before = pack(tuner.state())
    with pytest.raises(RuntimeError, match="lost"):
        tuner.train_step(Broken())
    with pytest.raises(RuntimeError, match="lost"):
        tuner.evaluate(Broken())
    assert pack(tuner.state()) == before


def test_state_is_restored_bit_for_bit(make_spec: Callable, make_tuner: Callable) -> None:
    unbroken, first, second = (make_tuner(make_spec(max_iterations=10, eval_every=3)) for _ in range(3))
    for _ in range(3):
        first.evaluate() if first.evaluation_due else first.train_step()
    second.load_state(unpack(pack(first.state())))
    for tuner in (finish(unbroken), finish(second)):
        assert tuner.step_index == 10
    assert torch.equal(unbroken.prompt, second.prompt)
    rows = [[(e.step, e.loss, e.metric, e.train_loss) for e in t.progress.evaluations] for t in (unbroken, second)]
    assert rows[0] == rows[1]
    assert torch.equal(unbroken.result_prompt, second.result_prompt)


def test_state_of_another_job_is_refused(make_spec: Callable, make_tuner: Callable) -> None:
    state = make_tuner(make_spec()).state()
    with pytest.raises(StateError, match="learning_rate, seed differ"):
        make_tuner(make_spec(seed=4, learning_rate=0.5)).load_state(state)
    with pytest.raises(StateError, match="damaged"):
        unpack(b"not a state at all")


def test_divergence_is_a_clear_error_and_keeps_the_prompt(make_spec: Callable, make_tuner: Callable) -> None:
    tuner = make_tuner(make_spec())
    kept = tuner.prompt

    class Poison:
        rank, world = 0, 1

        def all_reduce_(self, tensor: torch.Tensor) -> None:
            tensor.fill_(float("nan"))

    with pytest.raises(PromptTunerError, match="lower learning_rate"):
        tuner.train_step(Poison())
    assert torch.equal(tuner.prompt, kept)
    assert tuner.step_index == 0


def test_unknown_metric_is_refused(make_spec: Callable, make_tuner: Callable) -> None:
    with pytest.raises(SpecError, match="exact_match"):
        make_tuner(make_spec(target={"metric": "bleu", "op": ">=", "value": 0.5}))


def test_too_long_sample_is_named(make_spec: Callable, make_tuner: Callable) -> None:
    with pytest.raises(DataError, match=r"sample 1 has \d+ tokens; with 250 of the soft prompt"):
        make_tuner(make_spec(prompt_length=250))
