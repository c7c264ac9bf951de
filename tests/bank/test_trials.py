"""Leave-one-out trials: what is noted of a job, what a trial finds, and that it may be cut off anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prompttuner import smallmodel
from prompttuner.bank import Bank, Entry, Shelf
from prompttuner.bank.folder.layout import Sharing
from prompttuner.bank.folder.tasks import note_task, read_tasks
from prompttuner.bank.idle.trials import run_trials
from prompttuner.bank.idle.work import idle_work
from prompttuner.bank.index.trial_log import VOCAB, Trial, read_trials
from prompttuner.bank.lookup.race import RaceSettings
from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.smallmodel import tasks

TASK, OTHERS = "reverse+next", ("reverse+same", "sort+next", "copy+next2")
NEVER: Callable[[], bool] = lambda: False  # noqa: E731


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(str(smallmodel.path()))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prompttuner.bank.idle.trials.RACE", RaceSettings(finalists=3, steps=(1, 1), samples=4))
    monkeypatch.setattr("prompttuner.bank.idle.trials.SAMPLES", 8)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """Instructions of some tasks, and a tuned prompt."""
    shelf = Bank.create(tmp_path / "bank").shelf(str(smallmodel.path()))
    for name in (TASK, *OTHERS):
        for text in tasks.phrasings(tasks.SEEN[name])[:3]:
            shelf.add(Entry("text", "small", text=text, task=name))
    return shelf


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    """What a job of the task said."""
    tasks.write_dataset(TASK, tmp_path, train=40, evaluation=4)
    return {
        "model": str(smallmodel.path()),
        "train": str(tmp_path / "train.jsonl"),
        "train_sha256": "0" * 64,
        "template": "{input}",
        "prompt_length": None,
        "batch_size": 4,
        "learning_rate": 0.03,
        "seed": 1,
    }


def tuned(shelf: Shelf, loaded: LoadedModel, seed: int = 0) -> str:
    """An entry that a job left: a prompt that is good for nothing, which nobody may take for a candidate of itself."""
    prompt = np.random.default_rng(seed).normal(size=(3, loaded.hidden)).astype(np.float32)
    return shelf.add(Entry("soft", "small", task=TASK), prompt)


def stop_after(count: int) -> Callable[[], bool]:
    answers = iter([False] * count)
    return lambda: next(answers, True)


def test_a_trial_scores_and_tunes_the_other_entries(shelf: Shelf, loaded: LoadedModel, spec: dict[str, Any]) -> None:
    entry = tuned(shelf, loaded)
    note_task(shelf, entry, spec, "job-1")
    done = idle_work(shelf.bank.root, loaded, NEVER, str(smallmodel.path()))
    assert (done.features, done.trials) == (13, 1)
    trial = read_trials(shelf)[entry]
    assert trial.complete and trial.job == "job-1" and trial.entries == 13
    assert entry not in trial.losses and entry not in trial.after
    assert VOCAB in trial.after and len(trial.after) == 3
    assert trial.best is not None and shelf.read(trial.best).task == TASK, "its own instruction serves it best"
    assert idle_work(shelf.bank.root, loaded, NEVER, str(smallmodel.path())).trials == 0, "once is enough"


def test_entries_of_the_same_data_are_left_out_too(shelf: Shelf, loaded: LoadedModel, spec: dict[str, Any]) -> None:
    one, two = tuned(shelf, loaded, 1), tuned(shelf, loaded, 2)
    note_task(shelf, one, spec, "a")
    note_task(shelf, two, spec, "b")
    assert run_trials(shelf, loaded, NEVER) == 2
    for trial in read_trials(shelf).values():
        assert not {one, two} & {*trial.losses, *trial.after}


def test_cut_off_anywhere_it_goes_on_and_comes_to_the_same(
    shelf: Shelf, loaded: LoadedModel, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prompttuner.bank.idle.trials.SAVED_EVERY_S", 0.0)
    entry = tuned(shelf, loaded)
    idle_work(shelf.bank.root, loaded, NEVER, str(smallmodel.path()))  # features, without which clusters differ
    note_task(shelf, entry, spec, "a")
    assert run_trials(shelf, loaded, NEVER) == 1
    whole = read_trials(shelf)[entry]
    (shelf.root / "trials" / f"{entry}.json").unlink()
    seen = 0
    for allowed in range(1, 100):  # each time one more step than before, or nothing would ever be finished
        if run_trials(shelf, loaded, stop_after(allowed)):
            break
        trial = read_trials(shelf).get(entry)
        known = 0 if trial is None else sum(map(len, trial.losses.values())) + len(trial.after)
        assert known >= seen, "what was found is kept"
        seen = known
    again = read_trials(shelf)[entry]
    assert again.complete and allowed > 2
    assert again.after == pytest.approx(whole.after, rel=1e-3)
    assert {name: np.mean(losses) for name, losses in again.losses.items()} == pytest.approx(
        {name: np.mean(losses) for name, losses in whole.losses.items()}, rel=1e-3
    )


def test_changed_or_lost_data_is_not_tried(shelf: Shelf, loaded: LoadedModel, spec: dict[str, Any]) -> None:
    entry = tuned(shelf, loaded)
    note_task(shelf, entry, spec, "a")
    with Path(spec["train"]).open("a") as handle:
        handle.write('{"input": "a", "target": "b"}\n')
    assert run_trials(shelf, loaded, NEVER) == 0
    Path(spec["train"]).unlink()
    assert run_trials(shelf, loaded, NEVER) == 0 and not read_trials(shelf)


def test_a_task_that_cannot_be_tried_is_left_alone(shelf: Shelf, loaded: LoadedModel, spec: dict[str, Any]) -> None:
    entry = tuned(shelf, loaded)
    Path(spec["train"]).write_text("no JSON\n")
    note_task(shelf, entry, spec, "a")
    assert run_trials(shelf, loaded, NEVER) == 0
    trial = read_trials(shelf)[entry]
    assert trial.complete and trial.best is None


def test_it_is_tried_again_when_the_bank_has_doubled(shelf: Shelf, loaded: LoadedModel, spec: dict[str, Any]) -> None:
    entry = tuned(shelf, loaded)
    note_task(shelf, entry, spec, "a")
    Trial(entry, "a", entries=7, complete=True).save(shelf)
    assert run_trials(shelf, loaded, NEVER) == 0
    Trial(entry, "a", entries=6, complete=True).save(shelf)
    assert run_trials(shelf, loaded, NEVER) == 1 and read_trials(shelf)[entry].entries == 13


def test_nothing_of_the_data_is_stored_or_shared(tmp_path: Path, loaded: LoadedModel, spec: dict[str, Any]) -> None:
    shared = Bank.create(tmp_path / "shared", Sharing.GROUP_READ).shelf(str(smallmodel.path()))
    note_task(shared, tuned(shared, loaded), spec, "a")
    assert not read_tasks(shared) and not (shared.root / "tasks").exists()
    own = Bank.create(tmp_path / "own").shelf(str(smallmodel.path()))
    entry = tuned(own, loaded)
    note_task(own, entry, spec, "a")
    assert run_trials(own, loaded, NEVER) == 1
    word = json.loads(Path(spec["train"]).read_text().splitlines()[0])["input"]
    for path in own.bank.root.rglob("*.json"):
        assert word not in path.read_text()
    shelf = Bank.create(tmp_path / "shared").shelf_like(own)
    shelf.add(own.read(entry), own.prompt(own.read(entry)))
    assert sorted(path.name for path in (shelf.entries / entry).iterdir()) == ["entry.json", "prompt.safetensors"]


def test_what_is_noted_goes_with_its_entry(shelf: Shelf, loaded: LoadedModel, spec: dict[str, Any]) -> None:
    one, two = tuned(shelf, loaded, 1), tuned(shelf, loaded, 2)
    for entry in (one, two):
        note_task(shelf, entry, spec, "a")
        Trial(entry, "a").save(shelf)
    shelf.remove(one)
    (shelf.entries / two).rename(shelf.entries / ".gone-by-hand")
    assert not read_tasks(shelf) and not read_trials(shelf)
    assert not list((shelf.root / "tasks").iterdir()) and not list((shelf.root / "trials").iterdir())


@pytest.mark.parametrize("damage", ["", "[]", '{"format": 1}', '{"format": 1, "job": "a", "losses": 3}', "[" * 9999])
def test_a_damaged_log_reads_as_none(shelf: Shelf, loaded: LoadedModel, damage: str) -> None:
    entry = tuned(shelf, loaded)
    Trial(entry, "a", 3, {"x": [1.0, float("inf")]}, {"x": 0.5}, complete=True).save(shelf)
    kept = read_trials(shelf)[entry]
    assert replace(kept, at=0.0) == Trial(entry, "a", 3, {"x": [1.0, float("inf")]}, {"x": 0.5}, complete=True)
    (shelf.root / "trials" / f"{entry}.json").write_text(damage)
    assert read_trials(shelf) == {}
    (shelf.root / "tasks").mkdir()
    (shelf.root / "tasks" / f"{entry}.json").write_text(damage)
    assert read_tasks(shelf) == {}
