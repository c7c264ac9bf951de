"""The Python API: submit a job and look at it. Everything else is the command line's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompttuner.client.client import Client
    from prompttuner.client.views import JobView
    from prompttuner.config import Settings
    from prompttuner.spec import JobSpec

__all__ = ["result_dir", "state", "submit", "wait"]

STATE_KEYS = ("state", "step", "metric", "ita", "deadline_at", "finished_at", "note", "error")


def submit(spec: JobSpec, settings: Settings | None = None) -> str:
    """Submit a job and return its id once the controller has taken it; who runs one makes the job progress.

    Data is checked and hashed now. The request is left in the spool and a tick is tried, as the command line does.

    Args:
        spec: what to tune; relative paths are taken from the working folder.
        settings: None: the layers that the command line uses.

    Raises:
        SpecError, DataError, ModelError: the job cannot be right; nothing was left.
        SpoolError, DatabaseError: state or spool cannot be used.
        StateError: the controller refused the job, or did not answer; there is no such job then.
    """
    from prompttuner.bank.folder.named import resolve_entry
    from prompttuner.spec import make_spec, resolve
    from prompttuner.spec.models import check_at_hand

    resolved = resolve(make_spec(spec.model_dump(mode="json", exclude_unset=True)), time.time())
    client = _client(settings)
    resolved = resolve_entry(resolved, client.settings.all_bank_dirs)
    offline = client.settings.backend == "slurm" and client.settings.slurm.offline
    check_at_hand(resolved.model, offline)
    client.check([resolved])
    return client.submit([resolved])[0]


def state(job: str, settings: Settings | None = None) -> dict[str, str | int | float | None]:
    """Where a job stands.

    ``state``, ``step``, ``metric``, ``ita``, ``members``, ``note``, ``error``; ``deadline_at`` and ``finished_at`` in
    Unix seconds.

    Raises:
        NotFound: no such job (it may still lie in the inbox).
    """
    return _state(_client(settings).job(job))


def wait(
    job: str, timeout_s: float = float("inf"), settings: Settings | None = None
) -> dict[str, str | int | float | None]:
    """Wait until a job has ended (somebody else must run the controller); returns its state.

    Raises:
        NotFound: no such job.
        TimeoutError: it has not ended in time.
    """
    return _state(_client(settings).wait(job, timeout_s))


def result_dir(job: str, settings: Settings | None = None) -> Path:
    """The folder with the PEFT adapter, ``result.json`` and ``history.csv`` of a job that has ended.

    Raises:
        NotFound: no such job, or its result was removed.
        StateError: it has no result (yet), and why.
    """
    return _client(settings).result(job)


def _state(view: JobView) -> dict[str, str | int | float | None]:
    return {**{name: getattr(view, name) for name in STATE_KEYS}, "members": view.gpus}


def _client(settings: Settings | None) -> Client:
    from prompttuner.client.client import Client

    return Client(settings or _settings())


def _settings() -> Settings:
    from prompttuner.config import load_settings

    return load_settings()
