"""``prompttuner sbatch``: take a script written for sbatch as a job, and answer as sbatch does."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from prompttuner.cli.frame import context
from prompttuner.errors import NotFound, NotOwner, SpecError

__all__ = ["app"]

app = typer.Typer()

LOOK_S = 1.0


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def sbatch(
    words: Annotated[
        list[str], typer.Argument(metavar="[OPTIONS] SCRIPT", help="Options of sbatch, then the script ('-': input).")
    ],
) -> None:
    """Submit a script with #SBATCH and #PROMPTTUNER lines, and answer as sbatch does."""
    from prompttuner.spec.batch_script import parse_batch_script

    options, path = list(words[:-1]), words[-1]
    if path.startswith("-") and path != "-":
        raise SpecError("which script? write: prompttuner sbatch [OPTIONS] SCRIPT")
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no script {path}") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not a text file") from None
    settings = context.settings()
    script = parse_batch_script(text, options, settings.slurm.model_dump(), "standard input" if path == "-" else path)
    for note in script.notes:
        sys.stderr.write(f"note: {note}\n")
    if script.chdir is not None:
        os.chdir(script.chdir)
    ids = _submit(script.spec, script.grid, script.hold)
    for job in ids:
        typer.echo(job if script.parsable else f"Submitted batch job {job}")
    if script.wait:
        raise typer.Exit(_wait(ids))


def _submit(spec: dict[str, object], grid: list[str], hold: bool) -> list[str]:
    from prompttuner.cli.frame.asking import client, tell
    from prompttuner.cli.jobs.submit import check_all, resolve_all, tell_notes

    specs = resolve_all([], spec, grid)
    tell_notes(check_all(specs))
    asker = client()
    answers = asker.ask([asker.new_request(specs, hold=hold)])
    tell(answers)
    for answer in answers:
        if answer.refused:
            raise SpecError(f"refused: {answer.message}")
    return [new.job for answer in answers for new in answer.request.jobs]


def _wait(ids: list[str]) -> int:
    """Until all have ended, ticking where nobody else does; 0 if every one reached its target or ran to its end."""
    from prompttuner.cli.state.reading import open_store
    from prompttuner.controller.run import tick_once
    from prompttuner.db.queries import jobs
    from prompttuner.states import JOB_ENDED, JobState

    settings = context.settings()
    states: dict[str, str] = {}
    while True:
        try:
            tick_once(settings)
        except NotOwner:
            pass  # somebody else's ticks do as well
        store = open_store()
        if store is not None:
            with store, store.read() as session:
                for job in ids:
                    try:
                        states[job] = jobs.get(session, job).state
                    except NotFound:
                        continue  # still in the inbox
        if len(states) == len(ids) and all(state in JOB_ENDED for state in states.values()):
            return 0 if all(state in {JobState.DONE, JobState.EXHAUSTED} for state in states.values()) else 1
        time.sleep(max(LOOK_S, settings.tick_s))
