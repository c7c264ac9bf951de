"""Real-language tasks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from prompttuner.errors import DataError, NotFound
from prompttuner.realmodel.tasks import countries, packages, registry
from prompttuner.realmodel.tasks.instructions import INSTRUCTIONS
from prompttuner.realmodel.tasks.pairs import Pair, deal
from prompttuner.realmodel.tasks.registry import FAMILIES, TASKS, get, main, write_dataset

SIZES = {"train": 192, "eval": 32, "test": 64}


@pytest.mark.parametrize("name", list(TASKS))
def test_no_word_of_a_tasks_test_or_eval_is_trained_on_whatever_the_seed(name: str) -> None:
    task = TASKS[name]
    splits = {seed: task.splits(seed, SIZES) for seed in (0, 1)}
    tested = {pair.key for parts in splits.values() for split in ("eval", "test") for pair in parts[split]}
    inputs = {pair.input.casefold() for parts in splits.values() for s in ("eval", "test") for pair in parts[s]}
    for parts in splits.values():
        assert not {pair.key for pair in parts["train"]} & tested
        assert not {pair.input.casefold() for pair in parts["train"]} & inputs
        assert not {pair.key for pair in parts["eval"]} & {pair.key for pair in parts["test"]}
        assert len(parts["train"]) >= 40
        assert len(parts["eval"]) >= 14
        assert len(parts["test"]) >= 14
    every = [pair for part in splits[0].values() for pair in part]
    assert max(Counter(pair.input.casefold() for pair in every).values()) == 1
    assert all(pair.input.strip() and pair.target.strip() for pair in every)


def test_there_are_at_least_24_tasks_in_families_each_with_an_instruction() -> None:
    assert len(TASKS) == sum(len(made) for made in FAMILIES.values()) >= 24
    assert len(FAMILIES) >= 6
    assert set(INSTRUCTIONS) == set(TASKS)
    assert len({task.slug for task in TASKS.values()}) == len(TASKS)


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("past", "take", "took"), ("plural", "man", "men"), ("superlative", "good", "best"),
        ("base of gerund", "coming", "come"), ("negation", "happy", "unhappy"),
        ("ordinal in words", "21", "twenty-first"),
        ("number of Roman numeral", "XLIX", "49"), ("capital", "Peru", "Lima"), ("continent", "Peru", "Americas"),
        ("article", "army", "an"), ("question", "We know.", "Do we know?"), ("weekday", "Sunday 01 January", "Sun"),
        ("sentiment", "terrible", "negative"),
    ],
)  # fmt: skip
def test_a_tasks_pairs_are_right(name: str, given: str, wanted: str) -> None:
    pairs = {pair.input: pair.target for pair in TASKS[name].make()}
    assert pairs[given] == wanted


def test_the_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    first = write_dataset(get("plural"), tmp_path / "a", train=20, evaluation=5, test=5)
    again = write_dataset(get("plural"), tmp_path / "b", train=20, evaluation=5, test=5)
    other = write_dataset(get("plural"), tmp_path / "c", train=20, evaluation=5, test=5, seed=1)
    assert first.train.read_bytes() == again.train.read_bytes() != other.train.read_bytes()
    samples = [json.loads(line) for line in first.train.read_text().splitlines()]
    assert len(samples) == 20
    assert all(sample["target"].startswith(" ") for sample in samples)


def test_pairs_about_the_same_word_stay_together() -> None:
    pairs = [Pair(f"{form} {n}", "x", str(n)) for n in range(50) for form in ("one", "two")]
    parts = deal("toy", pairs, 0, {"train": 999, "eval": 999, "test": 999})
    assert {split: len(part) for split, part in parts.items()} == {"test": 20, "eval": 20, "train": 60}
    for split, part in parts.items():
        assert all(count == 2 for count in Counter(pair.key for pair in part).values()), split


@pytest.mark.parametrize(("found", "words"), [("9.9", "version 9.9 is installed"), (None, "it is not installed")])
def test_a_package_of_another_version_is_refused_with_the_command_to_run(
    found: str | None, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def version(_name: str) -> str:
        if found is None:
            raise packages.PackageNotFoundError
        return found

    monkeypatch.setattr(packages, "version", version)
    for cached in (packages.require, countries._countries):
        cached.cache_clear()
    try:
        with pytest.raises(DataError, match="pip install") as caught:
            packages.require("countryinfo")
        assert words in str(caught.value)
        assert main([str(tmp_path / "tasks"), "--task", "capital"]) == 2
        assert "countryinfo==1.0.1" in capsys.readouterr().err
        assert not (tmp_path / "tasks").exists()
    finally:
        packages.require.cache_clear()


def test_the_command_writes_what_is_asked_for_and_says_the_licences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--task", "capital", "--task", "country code"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["capital", "country-code"]
    assert "MIT" in capsys.readouterr().out
    assert main([str(tmp_path), "--task", "nosuch"]) == NotFound.exit_code
    assert registry.TEMPLATE.count("{target}") == 1
