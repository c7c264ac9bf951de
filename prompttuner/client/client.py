"""One client for the command line and Python: asking the controller, and looking at jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prompttuner.client.asking import Answer, ask_all, withdraw
from prompttuner.client.reading import looking, one_job, pending_jobs
from prompttuner.client.views import JobView, job_view
from prompttuner.errors import NotFound, StateError
from prompttuner.protocol.requests import NewJob, Request, Submit
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.states import JOB_ENDED

if TYPE_CHECKING:
    from prompttuner.config import Settings

__all__ = ["Client"]

POLL_S = 0.5
R = TypeVar("R", bound=Request)


class Client:
    """What can be asked of, and seen in, one state. Errors are those of :mod:`prompttuner.errors`."""

    def __init__(self, settings: Settings, warn: Callable[[str], None] = lambda _text: None) -> None:
        """``warn`` is told what went wrong and will be tried again."""
        self.settings = settings
        self._warn = warn

    # -- asking -----------------------------------------------------------------------------------------------

    def ask(self, requests: Sequence[R], wait_s: float | None = None) -> list[Answer[R]]:
        """Leave requests and collect their answers; see :func:`prompttuner.client.asking.ask_all`."""
        return ask_all(self.settings, requests, wait_s, self._warn)

    def check(self, specs: Sequence[ResolvedSpec]) -> list[str]:
        """What would be refused, or fail in a worker's first minute; returns what the user should know, each once.

        Raises:
            PromptTunerError: why a job cannot be right.
        """
        from prompttuner.controller.act.admission import check_admission

        return check_admission(self.settings, specs)

    def new_request(self, specs: Iterable[ResolvedSpec], *, hold: bool = False) -> Submit:
        """A request for these jobs under new ids; not left yet."""
        from prompttuner.controller.requests import new_job_id

        return Submit(jobs=tuple(NewJob(job=new_job_id(), spec=spec) for spec in specs), hold=hold)

    def submit(self, specs: Iterable[ResolvedSpec], *, hold: bool = False, wait_s: float | None = None) -> list[str]:
        """Submit jobs, all or none; returns their ids once the controller has taken them.

        Raises:
            StateError: the controller refused, or did not answer within ``wait_s``; then there is no job of them.
            SpoolError, DatabaseError: state or spool cannot be used.
        """
        (answer,) = self.ask([self.new_request(specs, hold=hold)], wait_s)
        if not answer.applied and withdraw(self.settings, [answer.request]):
            (answer,) = self.ask([answer.request], wait_s)  # it was being taken: the same request is applied once
        ids = [new.job for new in answer.request.jobs]
        if answer.refused:
            raise StateError(f"{', '.join(ids)} was refused: {answer.message}")
        if not answer.applied:
            raise StateError("the controller did not answer, and the request was withdrawn: is it alive?")
        return ids

    # -- looking ----------------------------------------------------------------------------------------------

    def job(self, word: str) -> JobView:
        """The job that ``word`` means: its id, the beginning of one, or a name that only one job has.

        Raises:
            NotFound: no such job, or several; one that is still in the inbox is named as such.
        """
        with one_job(self.settings, word) as (_, row):
            return job_view(row, time.time(), self.settings.spool_dir)

    def jobs(self, states: Iterable[str] = (), limit: int = 200) -> list[JobView]:
        """The newest jobs in these states (none: in any), oldest first."""
        from prompttuner.db.queries import jobs
        from prompttuner.states import JobState

        now = time.time()
        with looking(self.settings) as session:
            found = [] if session is None else jobs.newest(session, limit, list(states) or list(JobState))
            views = [job_view(row, now, self.settings.spool_dir) for row in found]
        return sorted(views, key=lambda view: (view.submitted_at, view.id))

    def wait(self, job: str, timeout_s: float = float("inf")) -> JobView:
        """Wait until a job has ended (somebody else must run the controller); returns how.

        Raises:
            NotFound: no such job, in the state or in the inbox.
            TimeoutError: it has not ended in time.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                view = self.job(job)
            except NotFound:
                if not any(job in {new.job, new.spec.name} for new in pending_jobs(self.settings)):
                    view = self.job(job)  # taken in between, or there is none
                    continue
            else:
                if view.state in JOB_ENDED:
                    return view
            if time.monotonic() > end:
                raise TimeoutError(f"{job} has not ended after {timeout_s:g} s")
            time.sleep(POLL_S)

    def result(self, word: str) -> Path:
        """The folder with the PEFT adapter, ``result.json`` and ``history.csv`` of a job that has ended.

        Raises:
            NotFound: no such job, or its result was removed.
            StateError: the job has none (yet), and why.
        """
        view = self.job(word)
        if view.state not in JOB_ENDED:
            raise StateError(f"job {view.id} is {view.state} at iteration {view.step}: it has no result yet")
        if view.result is None:
            why = f": {view.error}" if view.error else ""
            raise StateError(f"job {view.id} ended {view.state} without a result{why}")
        folder = Path(view.result)
        if not folder.is_dir():
            raise NotFound(f"the result of job {view.id} is no longer at {folder} (purged, or past keep_days)")
        return folder
