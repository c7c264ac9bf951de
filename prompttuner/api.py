"""The Python API: submit a job and look at it. Everything else is the command line's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompttuner.errors import NotFound, StateError

if TYPE_CHECKING:
    from prompttuner.config import Settings
    from prompttuner.spec import JobSpec

__all__ = ["result_dir", "state", "submit", "wait"]

POLL_S = 0.5
REPLY_S = 10.0


def submit(spec: JobSpec, settings: Settings | None = None) -> str:
    """Submit a job and return its id at once; a controller (`prompttuner run`, cron) makes it progress.

    Data is checked and hashed now. The request is left in the spool and a tick is tried, as the command line does.

    Args:
        spec: what to tune; relative paths are taken from the working folder.
        settings: None: the layers that the command line uses.

    Raises:
        SpecError, DataError, ModelError: the job cannot be right; nothing was left.
        SpoolError, DatabaseError: state or spool cannot be used.
        StateError: the controller refused the job.
    """
    from prompttuner.bank.folder.named import resolve_entry
    from prompttuner.client.asking import ask_all
    from prompttuner.controller.act.admission import check_admission
    from prompttuner.controller.requests import new_job_id
    from prompttuner.protocol.requests import NewJob, Submit
    from prompttuner.spec import make_spec, resolve
    from prompttuner.spec.models import check_at_hand

    settings = settings or _settings()
    job = new_job_id()
    resolved = resolve(make_spec(spec.model_dump(mode="json", exclude_unset=True)), time.time())
    resolved = resolve_entry(resolved, settings.all_bank_dirs)
    check_at_hand(resolved.model, settings.backend == "slurm" and settings.slurm.offline)
    check_admission(settings, [resolved])
    (answer,) = ask_all(settings, [Submit(jobs=(NewJob(job=job, spec=resolved),))])
    if answer.refused:
        raise StateError(f"{job} was refused: {answer.message}")
    return job


def state(job: str, settings: Settings | None = None) -> dict[str, Any]:
    """Where a job stands.

    ``state``, ``step``, ``metric``, ``ita``, ``members``, ``note``, ``error``; ``deadline_at`` and ``finished_at`` in
    Unix seconds.

    Raises:
        NotFound: no such job (it may still lie in the inbox).
    """
    from prompttuner.db import Store
    from prompttuner.db.queries import jobs

    settings = settings or _settings()
    with Store.open(settings.database_url, read_only=True) as store, store.read() as session:
        row = jobs.get(session, jobs.resolve(session, job))
        names = ("state", "step", "metric", "ita", "deadline_at", "finished_at", "note", "error")
        return {**{name: getattr(row, name) for name in names}, "members": len(row.members)}


def wait(job: str, timeout_s: float = float("inf"), settings: Settings | None = None) -> dict[str, Any]:
    """Wait until a job has ended (somebody else must run the controller); returns its state.

    Raises:
        TimeoutError: it has not ended in time.
    """
    from prompttuner.states import JOB_ENDED

    end = time.monotonic() + timeout_s
    while True:
        try:
            now = state(job, settings)
        except NotFound:
            if time.monotonic() > end:
                raise
        else:
            if now["state"] in JOB_ENDED:
                return now
        if time.monotonic() > end:
            raise TimeoutError(f"{job} has not ended after {timeout_s:g} s")
        time.sleep(POLL_S)


def result_dir(job: str, settings: Settings | None = None) -> Path:
    """The folder with the PEFT adapter, ``result.json`` and ``history.csv`` of a job that has ended.

    Raises:
        NotFound: no such job, or it has no result.
    """
    from prompttuner.db import Store
    from prompttuner.db.queries import jobs

    settings = settings or _settings()
    with Store.open(settings.database_url, read_only=True) as store, store.read() as session:
        name = jobs.resolve(session, job)
    folder = settings.spool_dir / "jobs" / name / "result"
    if not folder.is_dir():
        raise NotFound(f"{name} has no result: `prompttuner show {name}` says why")
    return folder


def _settings() -> Settings:
    from prompttuner.config import load_settings

    return load_settings()
