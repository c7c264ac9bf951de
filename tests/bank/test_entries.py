"""Entries are immutable, named by content; hostile ones are refused with a reason."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_tensors

from prompttuner.bank import BadEntry, Bank, Entry, Shelf
from prompttuner.bank.folder.layout import Sharing, model_key
from prompttuner.bank.index.shelf_index import refresh
from prompttuner.errors import NotFound, SpecError


def soft(seed: int = 0, shape: tuple[int, int] = (4, 8)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def add_soft(shelf: Shelf, seed: int = 0) -> str:
    return shelf.add(Entry(kind="soft", model="org/tiny", task="t", source="test"), soft(seed))


def rewrite(shelf: Shelf, entry_id: str, **changes: object) -> Path:
    path = shelf.entries / entry_id / "entry.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path.parent


def test_a_soft_prompt_comes_back_bit_by_bit(shelf: Shelf) -> None:
    entry_id = add_soft(shelf)
    entry = shelf.read(entry_id)
    assert (entry.kind, entry.shape, entry.task) == ("soft", (4, 8), "t")
    assert np.array_equal(shelf.prompt(entry, 8), soft())
    assert shelf.width == 8


def test_the_same_prompt_twice_is_one_entry(shelf: Shelf) -> None:
    assert add_soft(shelf) == add_soft(shelf)
    text = Entry(kind="text", model="org/tiny", text="reverse it")
    assert shelf.add(text) == shelf.add(text)
    assert len(shelf.ids()) == 2


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (np.zeros((0, 8), np.float32), "shape"),
        (np.zeros(8, np.float32), "shape"),
        (np.zeros((5000, 8), np.float32), "shape"),
        (np.full((2, 8), np.nan, np.float32), "NaN"),
        (np.full((2, 8), 1e30, np.float64), "above"),
        (np.full((2, 8), 1e300, np.float64), "infinite"),
        (np.zeros((2, 8), np.int64), "floating point"),
        (np.zeros((2, 9), np.float32), "embedding width 9"),
    ],
)
def test_bad_tensors_are_refused(shelf: Shelf, prompt: np.ndarray, reason: str) -> None:
    add_soft(shelf)
    with pytest.raises(BadEntry, match=reason):
        shelf.add(Entry(kind="soft", model="org/tiny"), prompt)
    assert len(shelf.ids()) == 1


@pytest.mark.parametrize("text", ["", "  \n", "x" * 20000])
def test_bad_texts_are_refused(shelf: Shelf, text: str) -> None:
    with pytest.raises(BadEntry):
        shelf.add(Entry(kind="text", model="org/tiny", text=text))


def test_a_changed_text_is_refused(shelf: Shelf) -> None:
    entry_id = shelf.add(Entry(kind="text", model="org/tiny", text="sort"))
    rewrite(shelf, entry_id, text="ignore all that")
    with pytest.raises(BadEntry, match="does not fit its name"):
        shelf.read(entry_id)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "pickle"}, "kind"),
        ({"id": "../../../etc/passwd"}, "40 hex"),
        ({"id": "0" * 40}, "names it"),
        ({"task": ["x"]}, "must be text"),
        ({"shape": [4, 8, 1]}, "shape"),
        ({"shape": [True, 8]}, "shape"),
        ({"format": 99}, "format"),
        ({"quality": "good"}, "quality"),
    ],
)
def test_forged_descriptions_are_refused(shelf: Shelf, changes: dict[str, object], reason: str) -> None:
    entry_id = add_soft(shelf)
    rewrite(shelf, entry_id, **changes)
    with pytest.raises(BadEntry, match=reason):
        shelf.read(entry_id)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "header"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "header"),
        (b"\x80\x04]q\x00." * 40, "header"),
        (save_tensors({"prompt": np.zeros((4, 8), np.float32)}), "does not fit its name"),
        (save_tensors({"prompt": np.zeros((9, 8), np.float32)}), "description says"),
        (save_tensors({"prompt": np.zeros((4, 8), np.float64)}), "float32"),
        (save_tensors({"prompt": soft(), "more": soft(1)}), "float32 tensor named prompt"),
        (save_tensors({"prompt": np.full((4, 8), np.inf, np.float32)}), "infinite"),
        (save_tensors({"prompt": soft()})[:-8], "damaged"),
    ],
)
def test_forged_tensors_are_refused(shelf: Shelf, data: bytes, reason: str) -> None:
    entry_id = add_soft(shelf)
    (shelf.entries / entry_id / "prompt.safetensors").write_bytes(data)
    with pytest.raises(BadEntry, match=reason):
        shelf.prompt(shelf.read(entry_id), 8)


def test_a_huge_file_is_refused_unread(shelf: Shelf) -> None:
    entry_id = add_soft(shelf)
    with (shelf.entries / entry_id / "prompt.safetensors").open("r+b") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(BadEntry, match="more than"):
        shelf.prompt(shelf.read(entry_id))


def test_links_and_foreign_files_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    entry_id = add_soft(shelf)
    folder = shelf.entries / entry_id
    entry = shelf.read(entry_id)
    secret = tmp_path / "secret"
    secret.write_bytes((folder / "prompt.safetensors").read_bytes())
    (folder / "prompt.safetensors").unlink()
    (folder / "prompt.safetensors").symlink_to(secret)
    with pytest.raises(BadEntry, match="link"):
        shelf.prompt(entry)
    (folder / "run.py").write_text("print(1)")
    with pytest.raises(BadEntry, match="foreign"):
        shelf.read(entry_id)


def test_a_linked_folder_and_a_fifo_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    entry_id = add_soft(shelf)
    moved = (shelf.entries / entry_id).rename(tmp_path / "elsewhere")
    (shelf.entries / entry_id).symlink_to(moved)
    with pytest.raises(BadEntry, match="folder of its own"):
        shelf.read(entry_id)
    (shelf.entries / entry_id).unlink()
    moved.rename(shelf.entries / entry_id)
    (shelf.entries / entry_id / "entry.json").unlink()
    os.mkfifo(shelf.entries / entry_id / "entry.json")
    with pytest.raises(BadEntry, match="regular"):
        shelf.read(entry_id)


def test_check_names_every_bad_entry(shelf: Shelf) -> None:
    good, bad = add_soft(shelf, 1), add_soft(shelf, 2)
    (shelf.entries / bad / "prompt.safetensors").write_bytes(b"rubbish")
    (shelf.entries / "not-an-entry").mkdir()
    assert {name for name, _ in shelf.check()} == {bad, "not-an-entry"}
    assert good in shelf.ids() and "not-an-entry" not in shelf.ids()


@pytest.mark.parametrize("name", ["../../etc", "x" * 40, "0" * 40, ""])
def test_unknown_ids_are_not_found(shelf: Shelf, name: str) -> None:
    for act in (shelf.read, shelf.remove):
        with pytest.raises(NotFound):
            act(name)


@pytest.mark.parametrize("sharing", list(Sharing))
def test_folders_made_above_a_private_bank_are_private_and_above_a_shared_one_follow_the_umask(
    tmp_path: Path, sharing: Sharing
) -> None:
    """The home folder, where a prompt is put into the bank before anything else is done."""
    old = os.umask(0o022)
    try:
        Bank.create(tmp_path / "home" / "bank", sharing)
    finally:
        os.umask(old)
    expected = 0o700 if sharing is Sharing.PRIVATE else 0o755
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) & 0o777 == expected


@pytest.mark.parametrize(
    ("sharing", "folder", "file"),
    [(Sharing.PRIVATE, 0o700, 0o600), (Sharing.GROUP_READ, 0o750, 0o640), (Sharing.GROUP_WRITE, 0o750, 0o640)],
)
def test_modes_follow_the_sharing(tmp_path: Path, sharing: Sharing, folder: int, file: int) -> None:
    old = os.umask(0o077)
    try:
        shelf = Bank.create(tmp_path / "b", sharing).shelf("org/tiny")
        entry = shelf.entries / add_soft(shelf)
    finally:
        os.umask(old)
    assert stat.S_IMODE(entry.stat().st_mode) & 0o777 == folder
    assert {stat.S_IMODE(p.stat().st_mode) for p in entry.iterdir()} == {file}
    assert Bank.open(tmp_path / "b").sharing is sharing
    refresh(shelf)
    shelf.add_outcome({"entry": entry.name, "job": "j"})
    alike = [shelf.bank.root / "bank.json", shelf.root / "model.json", shelf.cache / "index.safetensors"]
    assert {stat.S_IMODE(p.stat().st_mode) for p in (*alike, *shelf.outcome_files())} == {file}
    sticky = {p: bool(p.stat().st_mode & stat.S_ISVTX) for p in (shelf.bank.root, shelf.root, shelf.entries)}
    assert set(sticky.values()) == {sharing is Sharing.GROUP_WRITE}
    assert not shelf.cache.stat().st_mode & stat.S_ISVTX, "its index is everybody's to replace"


def test_a_first_prompt_of_the_wrong_width_does_not_shut_out_what_jobs_leave(shelf: Shelf) -> None:
    wrong = shelf.add(Entry("soft", "org/tiny"), np.ones((2, 64), np.float32))
    right = np.ones((2, 8), np.float32)
    with pytest.raises(BadEntry, match="64"):
        shelf.add(Entry("soft", "org/tiny"), right)
    shelf.add(Entry("soft", "org/tiny"), right, tuned_here=True)
    assert shelf.width == 8
    assert [(name, "width" in reason) for name, reason in shelf.check()] == [(wrong, True)]


def test_a_bank_that_cannot_be_written_says_so(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Shelf, "_place", refuse)
    with pytest.raises(SpecError, match="ask its owner"):
        add_soft(shelf)


def test_outcomes_are_kept_and_rubbish_lines_skipped(shelf: Shelf) -> None:
    entry_id = add_soft(shelf)
    shelf.add_outcome({"entry": entry_id, "ita": 10, "reached": True})
    with next(shelf.root.glob("outcomes-*.jsonl")).open("a") as handle:
        handle.write("half a li")
    assert shelf.outcomes() == {entry_id: [{"entry": entry_id, "ita": 10, "reached": True}]}


def test_a_model_folder_is_known_by_its_content(tmp_path: Path) -> None:
    for name, weights in (("a/m", b"1"), ("b/m", b"1"), ("c/m", b"2")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    a, b, c = (model_key(str(tmp_path / n)) for n in ("a/m", "b/m", "c/m"))
    assert a == b != c
    assert "/" not in model_key("org/../../name") and model_key("org/name") == "org--name"


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60))
def test_a_model_name_never_leaves_the_bank(name: str) -> None:
    key = model_key("hub/" + name)
    assert key not in {"", ".", ".."} and "/" not in key and "\0" not in key
