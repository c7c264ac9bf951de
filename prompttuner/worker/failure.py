"""How a lease that went wrong is told: error.json by kind, and the lease's end."""

from __future__ import annotations

import contextlib
import traceback

import torch

from prompttuner.errors import (
    ConfigError,
    DataError,
    HostError,
    ModelError,
    PromptTunerError,
    SpecError,
    SpoolError,
    StateError,
)
from prompttuner.worker.elastic.rendezvous import PlanRendezvous
from prompttuner.worker.member import LeaseEnd
from prompttuner.worker.member_files import MemberFiles

__all__ = ["WorkerDied", "tell_failure"]


class WorkerDied(PromptTunerError):
    """A worker that keeps dying without a word."""


_KINDS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((HostError,), "host"),
    ((DataError, SpecError), "data"),
    ((ModelError,), "model"),
    ((SpoolError, StateError, ConfigError), "protocol"),
    ((MemoryError, torch.OutOfMemoryError), "memory"),
)


def _kind_of(error: Exception) -> str:
    for classes, kind in _KINDS:
        if isinstance(error, classes):
            return kind
    if isinstance(error, RuntimeError) and "not enough memory" in str(error):
        return "memory"  # what torch's CPU allocator says
    return "crash"


def tell_failure(rendezvous: PlanRendezvous, generation: int, error: Exception) -> LeaseEnd:
    """Write error.json and the last progress; returns the end of the lease. Never raises."""
    kind = _kind_of(error)
    message = str(error) or type(error).__name__
    if kind == "memory":
        message = f"out of memory: {message.splitlines()[0]}; use more members, a smaller batch or a larger GPU"
    trace = traceback.format_exc()
    files = rendezvous.files
    if files is None:
        try:
            files = rendezvous.files = MemberFiles(rendezvous.job_dir, generation, rendezvous.agent)
        except OSError:
            return LeaseEnd("failed", message, generation)
    files.error(kind, message, trace)
    with contextlib.suppress(OSError):  # a full disk: the agent hears it from the lease's end
        files.progress("failed", error=message)
    return LeaseEnd("failed", message, files.generation)
