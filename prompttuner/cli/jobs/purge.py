"""``prompttuner purge``: removing what is left of ended jobs."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from prompttuner.cli.frame.asking import ask, tell
from prompttuner.cli.frame.completion import job_words
from prompttuner.cli.frame.output import JsonFlag, print_json
from prompttuner.cli.state.reading import job_in, looking, open_store
from prompttuner.client.asking import Answer
from prompttuner.errors import SpecError, StateError
from prompttuner.protocol.requests import Purge
from prompttuner.spec.when import parse_duration
from prompttuner.states import JOB_ENDED
from prompttuner.words import Counted

__all__ = ["app"]

app = typer.Typer()

AT_ONCE = 500
"""Jobs in one request: each request is a file and a transaction."""


@app.command()
def purge(
    jobs: Annotated[
        list[str] | None,
        typer.Argument(metavar="JOB...", help="Ids, beginnings of ids, or names.", autocompletion=job_words),
    ] = None,
    older_than: Annotated[str | None, typer.Option(help="All jobs that ended longer ago, such as 30d.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Remove ended jobs with their folders: checkpoints, results and logs."""
    named, old = _chosen(jobs or [], older_than)
    if (named or old) and not yes:
        many = Counted(len(named) + len(old), "job")
        if not sys.stdin.isatty():
            raise SpecError(f"this would remove {many} with their results, and nobody can be asked here: give --yes")
        typer.confirm(f"remove {many} with their results? There is no way back", abort=True)
    parts = [old[start : start + AT_ONCE] for start in range(0, len(old), AT_ONCE)]
    answers = ask([Purge(job=name) for name in named] + [Purge(jobs=tuple(part)) for part in parts])
    if json:
        print_json([{"job": name, "applied": a.applied, "message": a.message} for a in answers for name in _ids(a)])
    else:
        typer.echo("\n".join(f"{_whose(a)}: {a.message or 'asked for'}" for a in answers) or "nothing to remove")
    tell(answers)
    refused = [f"{_whose(a)}: {a.message}" for a in answers if a.refused]
    if refused:
        raise StateError("; ".join(refused))


def _ids(answer: Answer[Purge]) -> list[str]:
    """Of the jobs that a request was about."""
    return list(answer.request.jobs) or [str(answer.request.job)]


def _whose(answer: Answer[Purge]) -> str:
    ids = _ids(answer)
    return ids[0] if len(ids) == 1 else str(Counted(len(ids), "job"))


def _chosen(words: list[str], older_than: str | None) -> tuple[list[str], list[str]]:
    """Ids of ended jobs, those named and those old enough; all are found before any is removed.

    Raises:
        SpecError: nothing was named.
        StateError: one has not ended.
    """
    if not words and older_than is None:
        raise SpecError("name jobs, or give --older-than 30d")
    ids = []
    with looking() as session:
        for word in words:
            row = job_in(session, word)
            if row.state not in JOB_ENDED:
                raise StateError(f"job {row.id} is {row.state}: cancel it first")
            ids.append(row.id)
    old: list[str] = []
    if older_than is not None:
        seconds = parse_duration(older_than)
        if seconds is None:
            raise SpecError(f"--older-than {older_than!r}: write a duration such as 30d or 12h")
        old = [name for name in _older(time.time() - seconds) if name not in ids]
    return list(dict.fromkeys(ids)), old


def _older(before: float) -> list[str]:
    from prompttuner.db.queries import jobs

    store = open_store()
    if store is None:
        return []
    with store, store.read() as session:
        return jobs.ended_before(session, before)
