"""The task generator: right answers, disjoint splits, reproducible files."""

from __future__ import annotations

import json

import pytest

from prompttuner.errors import NotFound
from prompttuner.smallmodel import tasks


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("reverse+upper", "abc", "CBA"),
        ("sort+next2", "zcb", "deb"),
        ("rotate_left+previous", "abc", "abz"),
        ("double+same", "ab", "aabb"),
        ("swap_ends+same", "abcd", "dbca"),
        ("every_second+upper", "abcde", "ACE"),
        ("drop_ends+same", "abcd", "bc"),
    ],
)
def test_answers_are_right(name: str, given: str, wanted: str) -> None:
    assert tasks.get(name).target(list(given)) == list(wanted)


def test_held_out_compositions_are_never_seen_but_their_operations_are() -> None:
    assert not set(tasks.HELD_OUT) & set(tasks.SEEN)
    assert len(tasks.HELD_OUT) >= 12
    positions = {task.position.name for task in tasks.SEEN.values()}
    letters = {task.letter.name for task in tasks.SEEN.values()}
    for task in tasks.HELD_OUT.values():
        assert task.position.name in positions
        assert task.letter.name in letters


def test_phrasings_of_different_tasks_differ() -> None:
    texts = [text for task in [*tasks.SEEN.values(), *tasks.HELD_OUT.values()] for text in tasks.phrasings(task)]
    assert len(texts) == len(set(texts)) > 1000


def test_train_and_eval_share_no_input() -> None:
    task = tasks.get("reverse+upper")
    train = {row["input"] for row in task.samples(0, 2000)}
    evaluation = {row["input"] for row in task.samples(0, 500, "eval")}
    assert not train & evaluation


def test_files_are_reproducible_and_depend_on_the_seed(tmp_path) -> None:
    first = tasks.write_dataset("reverse+upper", tmp_path / "a", train=20, evaluation=5)
    second = tasks.write_dataset("reverse+upper", tmp_path / "b", train=20, evaluation=5)
    other = tasks.write_dataset("reverse+upper", tmp_path / "c", train=20, evaluation=5, seed=1)
    assert first[0].read_bytes() == second[0].read_bytes()
    assert first[0].read_bytes() != other[0].read_bytes()
    rows = [json.loads(line) for line in first[0].read_text().splitlines()]
    assert len(rows) == 20
    assert all(set(row) == {"input", "target"} and row["input"].endswith(" =") for row in rows)


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(NotFound, match="reverse\\+upper"):
        tasks.get("nonsense")
