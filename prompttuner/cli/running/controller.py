"""``prompttuner controller``: the controller as a small Slurm job that hands over to itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.output import JsonFlag, print_json, print_table
from prompttuner.errors import StateError

if TYPE_CHECKING:
    from prompttuner.slurm.command import SlurmClient

__all__ = ["app"]

app = typer.Typer(help="Run the controller as a small Slurm job.", no_args_is_help=True)

HANDOVER_S = 60
"""A successor starts no sooner than this after it was submitted: a controller that fails cannot flood Slurm."""


@app.command()
def start(
    in_slurm: Annotated[bool, typer.Option("--in-slurm", help="As a Slurm job (the only way there is).")] = True,  # noqa: ARG001
    after: Annotated[str | None, typer.Option(hidden=True, help="Slurm job to wait for.")] = None,
    parsable: Annotated[bool, typer.Option("--parsable", help="Print the Slurm job id only.")] = False,
) -> None:
    """Submit the controller as a Slurm job without GPUs; a successor always waits for its end."""
    from prompttuner.cli.running.render import rendered_controller
    from prompttuner.files import make_private_dir, write_bytes

    settings = context.settings()
    if after is None:
        there = _jobs()
        if there:
            raise StateError(f"it is there already, as Slurm job {there[0][0]} ({there[0][1].lower()})")
    settings.make_home()
    script = make_private_dir(settings.logs_dir) / "controller.sh"
    write_bytes(script, rendered_controller(settings).encode(), 0o700)
    waiting = [] if after is None else [f"--dependency=afterany:{after}", f"--begin=now+{HANDOVER_S}"]
    answer = _client().run("sbatch", "--parsable", *waiting, str(script), submits=True)
    number = answer.strip().partition(";")[0]
    typer.echo(number if parsable else f"controller submitted as Slurm job {number}; its log is in {settings.logs_dir}")


@app.command()
def stop() -> None:
    """End the controller's Slurm job and its successor; jobs and agents go on."""
    found = _jobs()
    # Waiting ones first: otherwise the end of the running one would start its successor.
    for number, _, _ in sorted(found, key=lambda job: job[1] == "RUNNING"):
        _client().run("scancel", number)
    typer.echo("ended " + ", ".join(number for number, _, _ in found) if found else "there is none")


@app.command()
def status(json: JsonFlag = False) -> None:
    """Show the controller's Slurm jobs, and who is the controller now."""
    from prompttuner.cli.state.reading import controller_text

    found = _jobs()
    if json:
        print_json([{"native_id": number, "state": state, "reason": reason} for number, state, reason in found])
        return
    if found:
        print_table(["Slurm", "state", "reason"], found)
    typer.echo(controller_text())


def _client() -> SlurmClient:
    from prompttuner.slurm.command import SlurmClient

    return SlurmClient(context.settings().slurm.call_timeout_s)


def _jobs() -> list[tuple[str, str, str]]:
    """(id, state, reason) of our controller jobs in Slurm."""
    from prompttuner.cli.running.render import controller_job

    name = controller_job(context.settings())
    text = _client().run("squeue", "--noheader", f"--user={os.getuid()}", f"--name={name}", "--format=%i|%T|%r")
    rows = (line.strip().split("|", 2) for line in text.splitlines())
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]
