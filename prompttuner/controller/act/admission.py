"""What is checked before a job is submitted, whoever asks: `submit`, its dry run, `sbatch` and Python."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path, PurePath

from prompttuner import profiles
from prompttuner.config import Settings
from prompttuner.controller.act.limits import check_within_cap
from prompttuner.errors import ConfigError
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.spec.preflight import preflight
from prompttuner.spec.when import format_duration, iso
from prompttuner.words import Counted

__all__ = ["check_admission"]


def check_admission(settings: Settings, specs: Sequence[ResolvedSpec]) -> list[str]:
    """Check resolved specs against this site and against their models and data.

    Returns what the user should know, each once: targets that do not survive the tokenizer, a batch above the number of
    samples, a deadline before a job can even start.

    Raises:
        ConfigError: the home or the spool cannot be written.
        SpecError, DataError, ModelError: a job that could never run.
    """
    for folder in (settings.home, settings.spool_dir):
        _check_writable(folder)
    notes: list[str] = []
    for spec in specs:
        check_within_cap(settings, spec.min_gpus)
        notes += _batch_note(spec) + _deadline_note(spec)
    return list(dict.fromkeys(notes + preflight(specs, settings.checks)))


def _check_writable(folder: Path) -> None:
    """Raises ConfigError when ``folder``, or the first that exists above it, cannot be written."""
    present = folder
    while not present.exists() and present != present.parent:
        present = present.parent
    if not present.is_dir() or not os.access(present, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{folder} cannot be written ({present} is {'read-only' if present.is_dir() else 'no folder'} for you): "
            "choose another home (PROMPTTUNER_HOME) or spool"
        )


def _batch_note(spec: ResolvedSpec) -> list[str]:
    batch, count = spec.batch_size, spec.train_count
    if count is None or batch <= count:
        return []
    return [f"batch_size {batch} is above the {Counted(count, 'training sample')}: some come twice in an iteration"]


def _deadline_note(spec: ResolvedSpec) -> list[str]:
    """A deadline that even a job of one iteration on a new agent would miss, and the first one that is possible."""
    if spec.deadline_at is None or spec.submitted_at is None:
        return []
    label = PurePath(spec.model_name or spec.model).name
    profile = profiles.stated([label])[label]
    least = profile.queue_s + profile.start_s + profile.warm_s + profile.step_s
    given = spec.deadline_at - spec.submitted_at
    if given >= least:
        return []
    return [
        f"the deadline in {format_duration(given)} can only be met by an agent that is warm already: a new one needs "
        f"about {format_duration(least)} to its first iteration; possible is {iso(time.time() + least)} or later"
    ]
