"""From a spec to the frozen JSON of a submitted job, and the check that its data has not changed since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prompttuner.errors import DataError, SpecError
from prompttuner.files import sha256_file
from prompttuner.protocol.initial import InitialPrompt
from prompttuner.protocol.spec import SPEC_VERSION, ResolvedSpec
from prompttuner.spec.data import count_samples
from prompttuner.spec.job import DEFAULT_PROMPT_LENGTH, JobSpec
from prompttuner.spec.models import check_model_folder, locate_model
from prompttuner.spec.text import expand
from prompttuner.spec.when import iso, parse_deadline

__all__ = ["check_data", "resolve"]

DEFAULT_RATE = 0.01
"""The default of the build before, for its agents: they do not know ``learning_rate_auto``."""
MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format itself."""


def resolve(spec: JobSpec, now: float) -> ResolvedSpec:
    """The frozen spec of a job submitted at ``now`` (Unix seconds): nothing relative in it.

    All fields of the spec, and: ``spec_version``; ``model`` as an absolute folder or hub id, ``model_name`` as the user
    wrote it; absolute ``train`` and ``eval`` with ``train_sha256``, ``eval_sha256``, ``train_count``, ``eval_count``;
    ``deadline_at`` (Unix seconds, None for best effort) and ``deadline_iso``; ``submitted_at`` and ``submitted_iso``;
    ``prompt_length`` (None where the prompt sets it: a ``text:`` or file prompt, or for ``auto`` the one found);
    ``initial_prompt_sha256`` (None: no file); ``learning_rate_auto``, with 0.01 as ``learning_rate`` for older agents.

    Raises:
        SpecError: the deadline is not in the future.
        DataError: data missing, empty or broken.
        ModelError: the model cannot be used.
    """
    try:
        deadline_at = None if spec.deadline is None else parse_deadline(spec.deadline, now)
    except ValueError as error:
        raise SpecError(str(error)) from None
    model = locate_model(spec.model, Path.cwd())
    if Path(model).is_absolute():
        check_model_folder(model, spec.trust_remote_code, spec.model)
    initial = InitialPrompt.parse(spec.initial_prompt)
    values: dict[str, Any] = spec.model_dump(mode="json")
    prompt, prompt_hash = _initial_prompt(initial)
    values.update(
        spec_version=SPEC_VERSION,
        learning_rate=DEFAULT_RATE if spec.learning_rate is None else spec.learning_rate,
        learning_rate_auto=spec.learning_rate is None,
        model=model,
        model_name=spec.model,
        initial_prompt=prompt,
        initial_prompt_sha256=prompt_hash,
        prompt_length=spec.prompt_length or (None if initial.has_own_length else DEFAULT_PROMPT_LENGTH),
        deadline_at=deadline_at,
        deadline_iso=None if deadline_at is None else iso(deadline_at),
        submitted_at=now,
        submitted_iso=iso(now),
    )
    for key, path in (("train", spec.train), ("eval", spec.eval)):
        real = expand(path).absolute()
        values[key] = str(real)
        values[f"{key}_count"] = count_samples(real)
        values[f"{key}_sha256"] = sha256_file(real)
    return ResolvedSpec.expect(values)


def check_data(spec: ResolvedSpec) -> None:
    """Check that the files of a resolved spec are still those that were submitted.

    Raises:
        DataError: a file is gone or its content differs.
    """
    for key, name, expected in (
        ("train", spec.train, spec.train_sha256),
        ("eval", spec.eval, spec.eval_sha256),
        ("initial_prompt", spec.initial_prompt.value, spec.initial_prompt_sha256),
    ):
        if expected is None:
            continue
        path = Path(name)
        try:
            found = sha256_file(path)
        except OSError as error:
            raise DataError(f"{key} file {path} was there at submit and cannot be read now: {error.strerror}") from None
        if found != expected:
            raise DataError(f"{key} file {path} has changed since submit; submit the job again if that was meant")


def _initial_prompt(initial: InitialPrompt) -> tuple[str, str | None]:
    if initial.kind != "file":
        return str(initial), None
    path = expand(initial.value).absolute()
    try:
        with path.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            raw = handle.read(size) if 0 < size <= MAX_HEADER else b""
            header = json.loads(raw) if len(raw) == size else None
    except FileNotFoundError:
        raise DataError(f"initial_prompt {path}: no such file") from None
    except OSError as error:
        raise DataError(f"initial_prompt {path}: {error.strerror}") from None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise DataError(f"initial_prompt {path}: not a safetensors file")
    if not header.keys() - {"__metadata__"}:
        raise DataError(f"initial_prompt {path}: holds no tensor")
    return str(path), sha256_file(path)
