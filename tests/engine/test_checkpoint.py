"""Checkpoints: whole or not there, the last two kept, damage noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from prompttuner.engine import checkpoint
from prompttuner.engine.checkpoint import CheckpointClock, load_checkpoint, save_checkpoint
from prompttuner.engine.state import TunerState
from prompttuner.errors import SpoolError


def state(step: int) -> TunerState:
    return TunerState({"prompt": torch.full((2, 3), float(step))}, {"step": step, "version": 1})


def test_last_two_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        save_checkpoint(tmp_path, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-15", "checkpoint.json"]
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.meta["step"] == 100
    assert torch.equal(found.tensors["prompt"], torch.full((2, 3), 100.0))


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, state(1))
    file = save_checkpoint(tmp_path, state(2)) / "state.safetensors"
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-3] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.meta["step"] == 1


def test_saving_the_same_step_again_is_fine(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(4))
    save_checkpoint(tmp_path, state(4))
    assert load_checkpoint(tmp_path).meta["step"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint.json"]


def test_a_full_disk_leaves_the_old_one_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, state(1))

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    with pytest.raises(SpoolError, match="No space left"):
        save_checkpoint(tmp_path, state(2))
    assert load_checkpoint(tmp_path).meta["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint.json"]


def test_scraps_of_a_killed_life_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-3.99.abc").mkdir()
    save_checkpoint(tmp_path, state(4))
    assert not (tmp_path / ".checkpoint-3.99.abc").exists()


def test_files_are_private(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, state(1))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


def test_clock_counts_steps_and_seconds() -> None:
    steps = CheckpointClock(every_steps=5, every_s=1e9, step=10)
    assert [steps.due(step) for step in (10, 14, 15)] == [False, False, True]
    steps.saved(15)
    assert not steps.due(16)
    seconds = CheckpointClock(every_steps=10**9, every_s=0.0, step=10)
    assert not seconds.due(10)
    assert seconds.due(11)
