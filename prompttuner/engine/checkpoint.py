"""Checkpoints: a tuner's state in a folder, never half-written, the last two kept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompttuner.engine.state import TunerState
from prompttuner.errors import PromptTunerError, SpoolError
from prompttuner.files import make_private_dir, sha256_file, write_bytes, write_json
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.files import read_message, understood, write_message
from prompttuner.protocol.jobs import CheckpointPointer

__all__ = ["CheckpointClock", "load_checkpoint", "new_folder", "save_checkpoint"]

KEEP = 2
EVERY_STEPS, EVERY_S = ElasticSettings().checkpoint_steps, ElasticSettings().checkpoint_s


class CheckpointClock:
    """Says when the next checkpoint is due.

    Every ``every_steps`` iterations or ``every_s`` seconds, whichever is first.
    """

    def __init__(self, every_steps: int = EVERY_STEPS, every_s: float = EVERY_S, step: int = 0) -> None:
        self.every_steps, self.every_s = every_steps, every_s
        self.saved(step)

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` iterations should be saved now."""
        if step == self._step:
            return False
        return step - self._step >= self.every_steps or time.monotonic() - self._at >= self.every_s

    def saved(self, step: int) -> None:
        """Note that the state after ``step`` iterations has been saved."""
        self._step, self._at = step, time.monotonic()


def save_checkpoint(folder: Path, state: TunerState) -> Path:
    """Save a state as ``folder/checkpoint-<step>/`` and let ``folder/checkpoint.json`` point to it.

    A crash at any moment leaves either the old or the new checkpoint in force. Only one process may write ``folder``.

    Raises:
        SpoolError: it cannot be written (a full disk, say); the checkpoint before stays in force.
    """
    from safetensors.torch import save

    step = int(state.meta["step"])
    target = folder / f"checkpoint-{step}"
    try:
        with new_folder(target) as scratch:
            tensors = {key: tensor.contiguous() for key, tensor in state.tensors.items()}
            write_bytes(scratch / "state.safetensors", save(tensors))
            write_json(scratch / "meta.json", state.meta)
        digest = sha256_file(target / "state.safetensors")
        write_message(folder / CheckpointPointer.FILE, CheckpointPointer(step, target.name, digest))
    except OSError as error:
        raise SpoolError(f"checkpoint {target} cannot be written: {error.strerror or error}") from error
    _forget_old(folder, target)
    return target


def load_checkpoint(folder: Path) -> TunerState | None:
    """The newest whole checkpoint in ``folder``; None when there is none (or only damaged ones)."""
    pointer = understood(read_message(CheckpointPointer, folder / CheckpointPointer.FILE))
    if pointer is None or pointer.path is None:
        return None
    pointed = folder / pointer.path
    others = sorted(folder.glob("checkpoint-*/"), key=_step_of, reverse=True)
    for candidate in [pointed, *(path for path in others if path != pointed)]:
        state = _read(candidate, pointer.sha256 if candidate == pointed else None)
        if state is not None:
            return state
    return None


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A private scratch folder that takes the place of ``target`` when the block ends well.

    It vanishes when the block does not.
    """
    make_private_dir(target.parent)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
        if target.exists():  # a second save of the same step: the old one has the same content, or is worse
            old = target.with_name(f"{scratch.name}.old")
            target.rename(old)
            scratch.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _read(path: Path, digest: str | None) -> TunerState | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        file = path / "state.safetensors"
        if digest is not None and sha256_file(file) != digest:
            return None
        meta: dict[str, Any] = json.loads((path / "meta.json").read_bytes())
        return TunerState(load_file(file), meta)
    except (OSError, ValueError, SafetensorError, PromptTunerError):
        return None


def _forget_old(folder: Path, newest: Path) -> None:
    kept = sorted(folder.glob("checkpoint-*/"), key=_step_of, reverse=True)
    for path in [path for path in kept if path != newest][KEEP - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
    for scrap in folder.glob(".checkpoint-*"):  # of an earlier life of this only writer, killed in the middle
        if scrap.is_dir():
            shutil.rmtree(scrap, ignore_errors=True)


def _step_of(path: Path) -> int:
    number = path.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1
