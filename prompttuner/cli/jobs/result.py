"""``prompttuner result``: where the tuned prompt is, what it scored, and a copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from prompttuner.cli.frame.arguments import JobWord
from prompttuner.cli.frame.asking import client
from prompttuner.cli.frame.output import JsonFlag, print_json, print_pairs, writing
from prompttuner.errors import PromptTunerError, SpecError
from prompttuner.files import read_json

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
    asker = client()
    view = asker.job(job)
    folder = asker.result(view.id)
    report = read_json(folder / "result.json") or {}
    if to is not None:
        with writing(to, "--to"):
            _copy(folder, to)
    if tensorboard is not None:
        from prompttuner.engine.tensorboard import write_tensorboard

        with writing(tensorboard, "--tensorboard"):
            write_tensorboard(folder, tensorboard)
    if json:
        print_json({"job": view.id, "state": view.state, "folder": str(to or folder), "result": report})
        return
    print_pairs(
        {
            "job": view.id,
            "state": view.state,
            "target": view.target,
            **{key: value for key, value in report.items() if isinstance(value, str | int | float)},
            "files": ", ".join(sorted(path.name for path in folder.iterdir())),
            "folder": str(to or folder),
        }
    )
    typer.echo("\nUse it: peft.PeftModel.from_pretrained(model, folder)")


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
