"""Idle agents compute what the bank lacks, and give up at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prompttuner import smallmodel
from prompttuner.bank import Bank, Entry, Shelf
from prompttuner.bank.idle.work import PIECE, idle_work
from prompttuner.bank.index.shelf_index import load_index
from prompttuner.engine.llm.model import LoadedModel, load_model


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(str(smallmodel.path()))


@pytest.fixture
def shelf(tmp_path: Path, loaded: LoadedModel) -> Shelf:
    shelf = Bank.create(tmp_path / "bank").shelf(str(smallmodel.path()))
    for number in range(20):
        prompt = np.random.default_rng(number).normal(size=(3, loaded.hidden)).astype(np.float32)
        shelf.add(Entry("soft", "small", task=str(number)), prompt)
    return shelf


def test_all_features_are_computed_and_clustered(shelf: Shelf, loaded: LoadedModel) -> None:
    assert idle_work(shelf.bank.root, loaded, lambda: False).features == 20
    index = load_index(shelf)
    assert index.known.all() and (index.clusters.assign >= 0).all()
    assert idle_work(shelf.bank.root, loaded, lambda: False).features == 0


def test_a_lease_ends_it_after_one_piece_and_nothing_is_lost(shelf: Shelf, loaded: LoadedModel) -> None:
    asked = iter([False, True])
    assert idle_work(shelf.bank.root, loaded, lambda: next(asked, True)).features == PIECE
    assert load_index(shelf).known.sum() == PIECE
    assert idle_work(shelf.bank.root, loaded, lambda: False).features == 20 - PIECE


def test_bad_entries_and_missing_banks_are_no_trouble(shelf: Shelf, loaded: LoadedModel, tmp_path: Path) -> None:
    (shelf.entries / shelf.ids()[0] / "prompt.safetensors").write_bytes(b"x")
    assert idle_work(shelf.bank.root, loaded, lambda: False).features == 19
    assert idle_work(tmp_path / "nowhere", loaded, lambda: False).features == 0
