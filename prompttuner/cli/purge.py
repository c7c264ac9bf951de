"""``prompttuner purge``: removing what is left of ended jobs."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from prompttuner.cli import context
from prompttuner.cli.ask import ask_all, make_request, tell
from prompttuner.cli.output import JsonFlag, print_json
from prompttuner.cli.state import job_in, looking, open_store
from prompttuner.errors import SpecError, StateError
from prompttuner.spec.when import parse_duration
from prompttuner.states import JOB_ENDED
from prompttuner.words import Counted

__all__ = ["app"]

app = typer.Typer()


@app.command()
def purge(
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="JOB...", help="Ids, beginnings of ids, or names.")
    ] = None,
    older_than: Annotated[str | None, typer.Option(help="All jobs that ended longer ago, such as 30d.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Remove ended jobs with their folders: checkpoints, results and logs."""
    ids = _chosen(jobs or [], older_than)
    if ids and not yes and sys.stdin.isatty():
        typer.confirm(f"remove {Counted(len(ids), 'job')} with all results? There is no way back", abort=True)
    answers = ask_all(context.settings(), [make_request("purge", job=job_id) for job_id in ids])
    if json:
        print_json([{"job": a.request["job"], "applied": a.applied, "message": a.message} for a in answers])
    else:
        typer.echo("\n".join(f"{a.request['job']}: {a.message or 'asked for'}" for a in answers) or "nothing to remove")
    tell(answers)
    refused = [f"{a.request['job']}: {a.message}" for a in answers if a.applied and not a.ok]
    if refused:
        raise StateError("; ".join(refused))


def _chosen(words: list[str], older_than: str | None) -> list[str]:
    """Ids of ended jobs; all are found before any is removed.

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
    if older_than is not None:
        seconds = parse_duration(older_than)
        if seconds is None:
            raise SpecError(f"--older-than {older_than!r}: write a duration such as 30d or 12h")
        ids.extend(_older(time.time() - seconds))
    return list(dict.fromkeys(ids))


def _older(before: float) -> list[str]:
    from sqlalchemy import select

    from prompttuner.db.models import Job

    store = open_store()
    if store is None:
        return []
    ended = select(Job.id).where(Job.state.in_(sorted(JOB_ENDED)), Job.finished_at < before).order_by(Job.finished_at)
    with store, store.read() as session:
        return list(session.scalars(ended))
