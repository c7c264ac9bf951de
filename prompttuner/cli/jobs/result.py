"""``prompttuner result``: where the tuned prompt is, what it scored, and a copy of it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.arguments import JobWord
from prompttuner.cli.frame.output import JsonFlag, print_json, print_pairs, writing
from prompttuner.cli.jobs.views import job_view
from prompttuner.cli.state.reading import one_job
from prompttuner.errors import NotFound, PromptTunerError, SpecError, StateError
from prompttuner.files import read_json
from prompttuner.states import JOB_ENDED

__all__ = ["app"]

app = typer.Typer()


@app.command()
def result(
    job: JobWord,
    to: Annotated[Path | None, typer.Option(help="Copy the result into this new folder.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Write its history there for TensorBoard.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show or copy the tuned prompt of a job."""
    with one_job(job) as (_, row):
        view = job_view(row, time.time(), context.settings().spool_dir)
    folder = _folder(view)
    report = read_json(folder / "result.json") or {}
    if to is not None:
        with writing(to, "--to"):
            _copy(folder, to)
    if tensorboard is not None:
        from prompttuner.engine.tensorboard import write_tensorboard

        with writing(tensorboard, "--tensorboard"):
            write_tensorboard(folder, tensorboard)
    if json:
        print_json({"job": view["id"], "state": view["state"], "folder": str(to or folder), "result": report})
        return
    print_pairs(
        {
            "job": view["id"],
            "state": view["state"],
            "target": view["target"],
            **{key: value for key, value in report.items() if isinstance(value, str | int | float)},
            "files": ", ".join(sorted(path.name for path in folder.iterdir())),
            "folder": str(to or folder),
        }
    )
    typer.echo("\nUse it: peft.PeftModel.from_pretrained(model, folder)")


def _folder(view: dict[str, Any]) -> Path:
    """The promoted result.

    Raises:
        StateError: the job has none (yet), and why.
        NotFound: it had one, which has been removed.
    """
    if view["state"] not in JOB_ENDED:
        raise StateError(f"job {view['id']} is {view['state']} at iteration {view['step']}: it has no result yet")
    if view["result"] is None:
        why = f": {view['error']}" if view["error"] else ""
        raise StateError(f"job {view['id']} ended {view['state']} without a result{why}")
    folder = Path(view["result"])
    if not folder.is_dir():
        raise NotFound(f"the result of job {view['id']} is no longer at {folder} (purged, or past keep_days)")
    return folder


def _copy(folder: Path, to: Path) -> None:
    if to.exists():
        raise SpecError(f"{to} exists already: give a new folder")
    scratch = to.with_name(f".{to.name}.partial")
    try:
        shutil.copytree(folder, scratch)
        scratch.rename(to)
    except shutil.Error as error:  # one line a file; the first says why
        raise PromptTunerError(f"the result could not be copied to {to}: {error.args[0][0][2]}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
