"""A lookup on the small model: finds related prompts, keeps to its budget, never stops a job."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prompttuner import smallmodel
from prompttuner.bank import Bank, Entry, Shelf
from prompttuner.bank.index.shelf_index import load_index
from prompttuner.bank.lookup.scoring import Scorer
from prompttuner.bank.lookup.search import Found, LookupSettings, find_initial_prompt
from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.encoding import encode
from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.engine.tuner import TuningData
from prompttuner.protocol.jobs import Membership, Progress
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.smallmodel import tasks
from prompttuner.spec.data import Sample
from prompttuner.worker.member_files import MemberFiles
from prompttuner.worker.tuner_task import TunerTask

TARGET = "rotate_left+previous"
RELATED = ("rotate_left+same", "rotate_left+next")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(str(smallmodel.path()))


@pytest.fixture(scope="module")
def data() -> TuningData:
    train = [Sample(**s) for s in tasks.HELD_OUT[TARGET].samples(0, 64)]
    return TuningData(train, train[:8])


@pytest.fixture
def bank(tmp_path: Path) -> Shelf:
    shelf = Bank.create(tmp_path / "bank").shelf(str(smallmodel.path()))
    for name in ["copy+same", "reverse+next", "sort+next", "double+upper", "drop_last+next", *RELATED]:
        for text in tasks.phrasings(tasks.SEEN[name])[:3]:
            shelf.add(Entry("text", "small", text=text, task=name))
    return shelf


def spec(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "model": str(smallmodel.path()), "template": "{input} {target}", "learning_rate": 0.03, "batch_size": 8,
        "seed": 0, "prompt_length": None, "initial_prompt": "auto", "note": "",
    }  # fmt: skip
    return base | changes


def look(loaded: LoadedModel, data: TuningData, shelf: Shelf, budget: float = 3600.0, **changes: object) -> Found:
    return find_initial_prompt(spec(**changes), loaded, data, [shelf.bank.root], budget, 0)


def test_the_race_of_a_few_steps_finds_the_related_task(loaded: LoadedModel, data: TuningData, bank: Shelf) -> None:
    found = look(loaded, data, bank)
    assert found.prompt is not None and bank.read(found.report["chosen"]).task in RELATED


@pytest.mark.parametrize("strategy", ["racing", "brute-force"])
def test_every_strategy_beats_the_vocabulary(loaded: LoadedModel, data: TuningData, bank: Shelf, strategy: str) -> None:
    found = find_initial_prompt(
        spec(), loaded, data, [bank.bank.root], 3600.0, 0, settings=LookupSettings(strategy, race=None)
    )
    assert found.prompt is not None and bank.read(found.report["chosen"]).task in {*RELATED, "sort+next"}
    assert found.source == f"bank:{found.report['chosen'][:12]}"
    assert found.report["score"] < found.report["vocab_score"]


def test_the_report_is_json_and_tells_scores_costs_and_reasons(
    loaded: LoadedModel, data: TuningData, bank: Shelf
) -> None:
    report = json.loads(json.dumps(look(loaded, data, bank).report))
    assert report["entries"] == 21 and report["clusters"] >= 2
    assert report["evaluations"] > 0 and report["seconds"] > 0 and report["why"]
    assert report["candidates"][0]["name"] == report["chosen"]
    assert report["candidates"][0]["after_steps"] <= report["candidates"][1]["after_steps"]


def test_features_are_computed_once_and_kept(loaded: LoadedModel, data: TuningData, bank: Shelf) -> None:
    assert not load_index(bank).known.any()
    look(loaded, data, bank)
    index = load_index(bank)
    assert index.known.all() and len(index.clusters.medoids) >= 2


def test_the_same_lookup_twice_finds_the_same(loaded: LoadedModel, data: TuningData, bank: Shelf) -> None:
    look(loaded, data, bank)
    one, two = look(loaded, data, bank), look(loaded, data, bank)
    assert one.report["chosen"] == two.report["chosen"] and one.report["evaluations"] == two.report["evaluations"]


def test_a_prompt_length_is_kept_to(loaded: LoadedModel, data: TuningData, bank: Shelf) -> None:
    found = look(loaded, data, bank, prompt_length=12)
    assert found.prompt is not None and found.prompt.shape == (12, loaded.hidden)


def test_the_own_text_competes(loaded: LoadedModel, data: TuningData, bank: Shelf) -> None:
    own = tasks.phrasings(tasks.HELD_OUT[TARGET])[0]
    for changes in ({"initial_prompt": f"text:{own}"}, {"note": own}):
        found = look(loaded, data, bank, **changes)
        assert found.source == "own text"
        assert found.prompt is not None and len(found.prompt) == len(loaded.tokenizer(own)["input_ids"])


def test_an_empty_bank_means_the_vocabulary(loaded: LoadedModel, data: TuningData, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", Bank.create(tmp_path / "b").root):
        found = find_initial_prompt(spec(), loaded, data, [folder], 3600.0, 0)
        assert found.prompt is None and found.source == "vocab" and "no prompt" in found.report["why"]


def test_no_time_means_no_lookup_and_says_so(loaded: LoadedModel, data: TuningData, bank: Shelf) -> None:
    found = look(loaded, data, bank, budget=0.05)
    assert found.prompt is None and "skipped" in found.report["why"] and found.report["evaluations"] == 0


def test_little_time_shortens_the_lookup_and_says_so(
    loaded: LoadedModel, data: TuningData, bank: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prompttuner.bank.lookup.search as module

    look(loaded, data, bank)
    ticks = iter(np.arange(0.0, 1e6, 0.3))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(ticks)))
    found = look(loaded, data, bank, budget=1.0)
    assert found.report["shortened"] and found.report["evaluations"] < found.report["brute_force_evaluations"]
    assert str(found.report["race"]).startswith("left out")


def test_hostile_entries_and_banks_are_named_and_passed_over(
    loaded: LoadedModel, data: TuningData, bank: Shelf, tmp_path: Path
) -> None:
    bad = bank.add(Entry("soft", "small", task="bad"), np.ones((4, loaded.hidden), np.float32))
    (bank.entries / bad / "prompt.safetensors").write_bytes(b"rubbish" * 9)
    wide = bank.ids()[0] if bank.ids()[0] != bad else bank.ids()[1]
    (bank.entries / wide / "run.sh").write_text("true")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "bank.json").write_text("[]")
    found = find_initial_prompt(spec(), loaded, data, [broken, bank.bank.root], 3600.0, 0)
    assert found.prompt is not None
    notes = "\n".join(found.report["notes"])
    assert bad[:12] in notes and wide[:12] in notes and "broken" in notes


def test_prompts_that_leave_no_room_for_the_samples_are_refused(
    loaded: LoadedModel, data: TuningData, bank: Shelf
) -> None:
    text = bank.add(Entry("text", "small", text="sort " * 3000))
    soft = bank.add(Entry("soft", "small"), np.ones((1000, loaded.hidden), np.float32))
    found = look(loaded, data, bank)
    assert found.prompt is not None and len(found.prompt) < 100
    notes = [note for note in found.report["notes"] if "no room" in note]
    assert sorted(note.split()[1] for note in notes) == sorted([text[:12], soft[:12]])


def test_a_spoilt_bank_does_not_fill_the_report(loaded: LoadedModel, data: TuningData, bank: Shelf) -> None:
    for number in range(40):
        (bank.entries / f"{number:040x}").mkdir()
    found = look(loaded, data, bank)
    assert found.prompt is not None and len(found.report["notes"]) < 12
    assert any("bank check" in note for note in found.report["notes"])


def test_no_own_bank_yet_is_nothing_to_speak_of(
    loaded: LoadedModel, data: TuningData, bank: Shelf, tmp_path: Path
) -> None:
    folders = [tmp_path / "no-own-bank", bank.bank.root, tmp_path / "no-shared-bank"]
    found = find_initial_prompt(spec(), loaded, data, folders, 120.0, 0)
    assert ["no-shared-bank" in note for note in found.report["notes"]] == [True]


def test_a_better_vocabulary_start_beats_a_useless_bank(loaded: LoadedModel, data: TuningData, tmp_path: Path) -> None:
    starts = [initial_prompt(spec(initial_prompt="vocab", seed=seed), loaded).tensor for seed in range(6)]
    samples = encode(data.train, "{input} {target}", loaded.tokenizer)
    losses = Scorer(loaded, samples, lambda n: starts[n])(range(6), range(len(samples))).mean(axis=1)
    best = int(losses.argmin())
    shelf = Bank.create(tmp_path / "b").shelf(str(smallmodel.path()))
    shelf.add(Entry("soft", "small", task="useless"), starts[int(losses.argmax())].numpy())
    found = find_initial_prompt(
        spec(seed=best), loaded, data, [shelf.bank.root], 3600.0, 0, settings=LookupSettings(samples=64, race=None)
    )
    assert found.prompt is None and "vocabulary" in found.report["why"]


def test_two_banks_count_as_one(loaded: LoadedModel, data: TuningData, bank: Shelf, tmp_path: Path) -> None:
    other = Bank.create(tmp_path / "other").shelf(str(smallmodel.path()))
    copied = bank.read(bank.ids()[0])
    other.add(copied)
    own = tasks.phrasings(tasks.HELD_OUT[TARGET])[1]
    best = other.add(Entry("text", "small", text=own, task=TARGET))
    found = find_initial_prompt(spec(), loaded, data, [bank.bank.root, other.bank.root], 3600.0, 0)
    assert found.report["chosen"] == best and found.report["entries"] == 22


def test_a_job_starts_from_the_vocabulary_when_its_longest_sample_leaves_the_found_prompt_no_room(
    loaded: LoadedModel, data: TuningData, bank: Shelf, tmp_path: Path
) -> None:
    """The lookup sees some of the samples only; a job must never fail for what it found."""
    assert loaded.max_positions is not None
    lines = [sample._asdict() for sample in data.train]
    longest = {"input": " ".join(["a"] * (loaded.max_positions - 30)), "target": "b"}
    for name, rows in (("train", lines), ("eval", [*lines[:8], longest])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = spec(
        train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl"), eval_samples=None, max_iterations=1,
        target={"metric": "loss", "op": "<=", "value": 0.1}, eval_every=1, bucketing=False,
    )  # fmt: skip
    for entry_id in bank.ids():
        bank.remove(entry_id)
    text = tasks.phrasings(tasks.HELD_OUT[TARGET])[0]
    entry = bank.add(Entry("text", "small", text=" ".join([text] * 5)))
    assert look(loaded, data, bank).report["candidates"][0]["name"] == entry
    files = MemberFiles(tmp_path / "job", 1, "a")
    task = TunerTask.begin(
        ResolvedSpec.expect(job), loaded, Membership(1, ("a",), lookup_s=120.0), files, [str(bank.bank.root)]
    )
    files.close()
    told = json.loads((files.folder / "lookup.json").read_text())
    assert told["source"] == "vocab" and told["chosen"] is None and "no room" in told["why"]
    assert (task.noted(Progress()).initial_prompt or "").startswith("vocab")
