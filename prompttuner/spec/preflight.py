"""The worker's first checks at submit: once for each distinct model, data and template, remembered, in a child."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prompttuner.errors import DataError, ModelError, PromptTunerError, SpecError
from prompttuner.files import make_private_dir, read_json, write_json
from prompttuner.protocol.spec import ResolvedSpec

__all__ = ["preflight"]

LIMIT_S = 900.0
"""A child that takes longer is given up, and the worker checks alone."""
KEYS = (
    "model", "template", "train_sha256", "eval_sha256", "eval_samples", "prompt_length", "initial_prompt",
    "initial_prompt_sha256", "allow_unused_weights", "allow_unknown_tokens", "trust_remote_code",
)  # fmt: skip
"""All that the answer depends on, beside the model's files and the libraries' versions."""
LIBRARIES = ("prompttuner", "transformers", "tokenizers")
ERRORS: dict[str, type[PromptTunerError]] = {"data": DataError, "model": ModelError}
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}


def preflight(specs: Sequence[ResolvedSpec], cache: Path) -> list[str]:
    """Check resolved specs as a worker would in its first minute; returns what the user should know, each once.

    Only local model folders are looked at: a hub model is checked where it is loaded. Good answers are kept in
    ``cache``, one small file each; what was refused is looked at again.

    Raises:
        SpecError, DataError, ModelError: the first thing that is wrong.
    """
    distinct: dict[str, ResolvedSpec] = {}
    seen: dict[str, list[Any]] = {}
    for spec in specs:
        if Path(spec.model).is_absolute():
            distinct.setdefault(_key(spec, seen), spec)
    known = {key: read_json(cache / f"{key}.json") for key in distinct}
    missing = [key for key, value in known.items() if not isinstance(value, dict)]
    notes: list[str] = []
    for key, answer in zip(missing, _ask([distinct[key] for key in missing]), strict=True):
        if answer is None:
            notes.append("model and data could not be checked here; the first worker checks them")
            continue
        if answer["error"]:
            raise ERRORS.get(str(answer["kind"]), SpecError)(str(answer["error"]))
        known[key] = answer
        _remember(cache / f"{key}.json", answer)
    notes += [str(note) for answer in known.values() if isinstance(answer, dict) for note in answer.get("notes", ())]
    return list(dict.fromkeys(notes))


def _key(spec: ResolvedSpec, seen: dict[str, list[Any]]) -> str:
    """What a spec's answer depends on, as one word; ``seen`` keeps what models' folders hold."""
    model, given = spec.model, spec.to_json()
    if model not in seen:
        seen[model] = [
            [name, *_state(Path(model, name))] for name in sorted(path.name for path in Path(model).iterdir())
        ]
    prompt = str(spec.initial_prompt)
    values = {key: given.get(key) for key in KEYS} | {"initial_prompt": prompt if prompt.startswith("text:") else ""}
    whole = [values, seen[model], _versions()]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _ask(specs: Sequence[ResolvedSpec]) -> list[dict[str, Any] | None]:
    """One child's answers; None for what it did not come to."""
    if not specs:
        return []
    try:
        done = subprocess.run(
            [sys.executable, "-m", "prompttuner.engine.preflight"],
            input="".join(json.dumps(spec.to_json()) + "\n" for spec in specs),
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env={**os.environ, **QUIET},
        )
        answers: list[dict[str, Any] | None] = [json.loads(line) for line in done.stdout.splitlines()]
    except (OSError, subprocess.TimeoutExpired, ValueError):
        answers = []
    return answers + [None] * (len(specs) - len(answers))


def _remember(file: Path, answer: Mapping[str, Any]) -> None:
    if not file.parent.parent.is_dir():
        return  # a dry run makes no home
    try:
        make_private_dir(file.parent)
        write_json(file, answer)
    except (OSError, PromptTunerError):
        pass  # it will be asked again


@lru_cache(maxsize=1)
def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("")
    return found
