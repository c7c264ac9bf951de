"""Deadline-aware, elastic LLM prompt tuning on Slurm clusters."""

from __future__ import annotations

TYPE_CHECKING = False  # not typing's: a Ctrl-C while that is imported, before `main` can catch it, would be a traceback
if TYPE_CHECKING:
    from typing import Any

    from prompttuner.api import result_dir, state, submit, wait
    from prompttuner.spec import JobSpec

__all__ = ["JobSpec", "__version__", "result_dir", "state", "submit", "wait"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import on first use: ``import prompttuner`` stays quick."""
    if name == "JobSpec":
        from prompttuner.spec import JobSpec

        return JobSpec
    if name in {"result_dir", "state", "submit", "wait"}:
        from prompttuner import api

        return getattr(api, name)
    raise AttributeError(f"module 'prompttuner' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, also those that are imported on first use."""
    return sorted(__all__)
