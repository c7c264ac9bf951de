"""The index: clusters that follow the entries, replacement when full, readable at any time."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.bank import Bank, Entry, Shelf
from prompttuner.bank.index import clusters as layers
from prompttuner.bank.index.shelf_index import load_index, refresh
from prompttuner.bank.index.trial_log import Trial


def blobs(groups: int, size: int, width: int = 16, seed: int = 0, noise: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, width))
    return (np.repeat(centres, size, axis=0) + noise * rng.normal(size=(groups * size, width))).astype(np.float32)


def fill(shelf: Shelf, features: np.ndarray, **options: object) -> list[str]:
    ids = [shelf.add(Entry(kind="text", model="org/tiny", text=f"prompt {i}")) for i in range(len(features))]
    refresh(shelf, dict(zip(ids, features, strict=True)), "layer=1", **options)  # type: ignore[arg-type]
    return ids


def test_clusters_find_the_groups() -> None:
    features = blobs(6, 10)
    found = layers.cluster(features)
    truth = np.repeat(np.arange(6), 10)
    assert len(found.medoids) >= 6
    for number in range(len(found.medoids)):
        assert len(set(truth[found.members(number)])) == 1


def test_clustering_is_repeatable_and_scales_past_the_sample() -> None:
    features = blobs(40, 60, width=8)
    one, two = layers.cluster(features, seed=3), layers.cluster(features, seed=3)
    assert np.array_equal(one.assign, two.assign) and len(one.assign) == 2400
    assert 20 <= len(one.medoids) <= 110


def test_insertion_joins_the_nearest_medoid() -> None:
    features = blobs(5, 8)
    found = layers.cluster(features[:-1])
    layers.insert(found, features, len(features) - 1)
    assert found.assign[-1] == found.assign[-2]


def test_reclustering_pays_when_one_cluster_swallows_the_new() -> None:
    features = blobs(5, 8)
    found = layers.cluster(features)
    assert layers.recluster_pays(found, features) == ""
    grown = np.vstack([features, blobs(1, 200, seed=9)])
    for row in range(len(features), len(grown)):
        layers.insert(found, grown, row)
    assert layers.recluster_pays(found, grown)


def test_the_most_redundant_least_useful_go_first() -> None:
    features = np.eye(6, dtype=np.float32)[:, :6]
    features = np.vstack([features, features[2] + 0.001])
    found = layers.cluster(features, k=2)
    found.assign[:] = found.assign[2]
    useful = np.zeros(7)
    useful[6] = 5
    assert layers.redundant(found, features, useful, 1) == [2]
    assert sorted(layers.redundant(found, features, useful, 7)) == list(range(7))


def test_index_survives_a_round_trip(shelf: Shelf) -> None:
    features = blobs(5, 8)
    ids = fill(shelf, features)
    index = load_index(shelf)
    assert sorted(index.ids) == sorted(ids) and index.known.all() and index.recipe == "layer=1"
    assert len(index.clusters.medoids) >= 3
    got = index.features[[index.rows[i] for i in ids]]
    assert np.allclose(got, layers.unit(features), atol=2e-3)


def test_entries_without_features_are_listed_and_unclustered(shelf: Shelf) -> None:
    fill(shelf, blobs(3, 4))
    new = shelf.add(Entry(kind="text", model="org/tiny", text="new"))
    index = refresh(shelf)
    assert index.missing() == [new] and index.clusters.assign[index.rows[new]] == -1


def test_a_removed_medoid_is_replaced_by_a_member(shelf: Shelf) -> None:
    fill(shelf, blobs(4, 6))
    index = load_index(shelf)
    medoid = index.ids[int(index.clusters.medoids[0])]
    group = {index.ids[int(r)] for r in index.clusters.members(0)} - {medoid}
    shelf.remove(medoid)
    index = refresh(shelf)
    assert medoid not in index.rows
    assert {index.ids[int(m)] for m in index.clusters.medoids} & group


def test_a_full_bank_keeps_what_was_useful(shelf: Shelf) -> None:
    features = np.repeat(np.eye(8, dtype=np.float32), 5, axis=0)
    ids = [shelf.add(Entry(kind="text", model="org/tiny", text=f"prompt {i}")) for i in range(40)]
    for i in range(0, 40, 5):
        shelf.add_outcome({"entry": ids[i], "reached": True})
    index = refresh(shelf, dict(zip(ids, features, strict=True)), "layer=1", capacity=16)
    assert len(index.ids) == 16 == len(shelf.ids())
    assert set(ids[::5]) <= set(index.ids)


def test_a_full_bank_keeps_what_served_a_trial_best(shelf: Shelf) -> None:
    features = np.repeat(np.eye(2, dtype=np.float32), 6, axis=0)
    ids = [shelf.add(Entry(kind="text", model="org/tiny", text=f"prompt {i}")) for i in range(12)]
    Trial(ids[0], after={"vocab": 2.0, ids[9]: 0.5, ids[8]: 1.0}).save(shelf)
    index = refresh(shelf, dict(zip(ids, features, strict=True)), "layer=1", capacity=2)
    assert ids[9] in index.ids and len(index.ids) == 2


def test_another_recipe_discards_old_features(shelf: Shelf) -> None:
    ids = fill(shelf, blobs(3, 4))
    index = refresh(shelf, {ids[0]: np.ones(5, np.float32)}, "layer=2")
    assert index.recipe == "layer=2" and index.known.sum() == 1 and index.features.shape[1] == 5


@pytest.mark.parametrize("damage", [b"", b"x" * 100, (1 << 50).to_bytes(8, "little") + b"{}"])
def test_a_damaged_index_reads_as_empty_and_heals(shelf: Shelf, damage: bytes) -> None:
    ids = fill(shelf, blobs(3, 4))
    (shelf.cache / "index.safetensors").write_bytes(damage)
    assert load_index(shelf).ids == []
    assert sorted(refresh(shelf).ids) == sorted(ids)


def test_a_forged_index_is_not_followed(shelf: Shelf) -> None:
    from safetensors.numpy import load_file, save_file

    fill(shelf, blobs(3, 4))
    path = shelf.cache / "index.safetensors"
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        meta = file.metadata()
    tensors = load_file(path)
    tensors["medoids"] = np.array([10**9], np.int64)
    save_file(tensors, path, meta)
    assert load_index(shelf).ids == []


def test_an_index_that_is_a_pipe_or_a_giant_is_not_opened(shelf: Shelf) -> None:
    ids = fill(shelf, blobs(3, 4))
    path = shelf.cache / "index.safetensors"
    with path.open("r+b") as handle:
        handle.truncate(1 << 40)
    assert load_index(shelf).ids == []
    path.unlink()
    os.mkfifo(path)
    assert load_index(shelf).ids == []
    assert sorted(refresh(shelf).ids) == sorted(ids) == sorted(load_index(shelf).ids)


def test_readers_never_see_half_an_index(shelf: Shelf) -> None:
    ids = fill(shelf, blobs(4, 6))
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(len(load_index(Bank.open(shelf.bank.root).shelf("org/tiny")).ids))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        refresh(shelf, rebuild=True)
    stop.set()
    reader.join()
    assert seen and set(seen) == {len(ids)}


def test_concurrent_writers_lose_nothing(shelf: Shelf) -> None:
    def write(number: int) -> None:
        mine = Bank.open(shelf.bank.root).shelf("org/tiny")
        for i in range(5):
            entry_id = mine.add(Entry(kind="text", model="org/tiny", text=f"{number} {i}"))
            refresh(mine, {entry_id: np.random.default_rng(number * 10 + i).normal(size=8)}, "layer=1")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index = load_index(shelf)
    assert len(index.ids) == 20 and index.known.all()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("afrc"), st.integers(0, 30)), max_size=25))
def test_the_index_stays_sound_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int]]
) -> None:
    shelf = Bank.create(tmp_path_factory.mktemp("b") / "bank").shelf("org/tiny")
    for act, number in acts:
        ids = shelf.ids()
        if act == "a":
            shelf.add(Entry(kind="text", model="org/tiny", text=f"prompt {number}"))
        elif act == "f" and ids:
            refresh(shelf, {ids[number % len(ids)]: np.random.default_rng(number).normal(size=6)}, "r")
        elif act == "r" and ids:
            shelf.remove(ids[number % len(ids)])
        elif act == "c":
            refresh(shelf, rebuild=bool(number % 2), capacity=10)
    index = refresh(shelf)
    again = load_index(shelf)
    assert sorted(index.ids) == shelf.ids() == sorted(again.ids)
    assert (index.clusters.assign[index.known] >= 0).all() and (index.clusters.assign[~index.known] == -1).all()
    covered = sorted(int(r) for n in range(len(index.clusters.medoids)) for r in index.clusters.members(n))
    assert covered == sorted(np.flatnonzero(index.known).tolist())
