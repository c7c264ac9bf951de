"""Commands that change jobs: each leaves a request, which the controller (perhaps this very command) applies."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.arguments import JobWord, JobWords
from prompttuner.cli.frame.asking import ask, tell
from prompttuner.cli.frame.output import JsonFlag, print_json
from prompttuner.cli.state.reading import job_in, looking, one_job, pending_jobs
from prompttuner.errors import NotFound, SpecError, StateError
from prompttuner.protocol.requests import Cancel, Hold, JobRequest, Release, Scale, Update
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.spec.when import iso, parse_deadline
from prompttuner.states import JOB_ENDED, JobState

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["app"]

app = typer.Typer()


@app.command()
def cancel(jobs: JobWords, json: JsonFlag = False) -> None:
    """Cancel jobs; their checkpoints are kept."""
    _change("cancel", jobs, json, lambda job: Cancel(job=job))


@app.command()
def hold(jobs: JobWords, json: JsonFlag = False) -> None:
    """Keep jobs from running until they are released."""
    _change("hold", jobs, json, lambda job: Hold(job=job))


@app.command()
def release(jobs: JobWords, json: JsonFlag = False) -> None:
    """Let held jobs run again."""
    _change("release", jobs, json, lambda job: Release(job=job), only=JobState.HELD)


@app.command()
def update(
    job: JobWord,
    deadline: Annotated[
        str | None, typer.Option(help="From now: 30m, 1h30m; or a time with its zone; 'none': best effort.")
    ] = None,
    priority: Annotated[int | None, typer.Option(min=-1000, max=1000, help="Higher goes first among equals.")] = None,
    json: JsonFlag = False,
) -> None:
    """Change a job's deadline or priority."""
    at = None
    if deadline is not None and deadline.strip().lower() != "none":
        try:
            at = parse_deadline(deadline, time.time())
        except ValueError as error:
            raise SpecError(str(error)) from None
    if deadline is None and priority is None:
        raise SpecError("nothing to change: give --deadline or --priority")
    _change(
        "update",
        [job],
        json,
        lambda job_id: Update(
            job=job_id,
            sets_deadline=deadline is not None,
            deadline_at=at,
            deadline_iso=None if at is None else iso(at),
            priority=priority,
        ),
    )


@app.command()
def scale(
    job: JobWord,
    gpus: Annotated[str, typer.Argument(metavar="N|auto", help="Number of GPUs; auto: the policy decides again.")],
    json: JsonFlag = False,
) -> None:
    """Give a job a fixed number of GPUs, or leave it to the policy again."""
    if gpus != "auto" and not (gpus.isdecimal() and int(gpus) >= 1):
        raise SpecError(f"{gpus!r} is not a number of GPUs: give 1 or more, or auto (to pause a job: hold)")
    from prompttuner.controller.act.limits import check_within_cap

    count = None if gpus == "auto" else int(gpus)
    with one_job(job) as (_, row):
        batch = ResolvedSpec.expect(row.spec).batch_size
    if count is not None and count > batch:
        raise SpecError(f"{count} GPUs are more than the batch size of {batch}: a member would have no sample")
    check_within_cap(context.settings(), count or 1)
    _change("scale", [job], json, lambda job_id: Scale(job=job_id, members=count))


def _change(
    kind: str, words: list[str], json: bool, make: Callable[[str], JobRequest], only: JobState | None = None
) -> None:
    """Find all jobs first, so that one wrong word changes nothing; then ask."""
    with looking() as session:
        ids = list(dict.fromkeys(_find(session, word, kind, only) for word in words))
    answers = ask([make(job_id) for job_id in ids])
    if json:
        print_json(
            [
                {"job": a.request.job, "request": a.request.id, "applied": a.applied, "message": a.message}
                for a in answers
            ]
        )
    else:
        for answer in answers:
            if answer.applied and answer.ok:
                typer.echo(f"{answer.request.job}: {answer.message or 'done'}")
            elif not answer.applied:
                typer.echo(f"{answer.request.job}: asked for")
    tell(answers)
    refused = [f"{a.request.job}: {a.message}" for a in answers if a.refused]
    if refused:
        raise StateError("; ".join(refused))


def _find(session: Session | None, word: str, kind: str, only: JobState | None) -> str:
    try:
        row = job_in(session, word)
    except NotFound:
        for new in pending_jobs(context.settings()):
            if word == new.job:
                return word  # submitted a moment ago: the inbox is applied in order
        raise
    job_id, state = row.id, row.state
    if state in JOB_ENDED:
        raise StateError(f"job {job_id} has ended ({state}): it is too late to {kind} it")
    if only is not None and state != only:
        raise StateError(f"job {job_id} is {state}, not {only}: nothing to {kind}")
    return job_id
