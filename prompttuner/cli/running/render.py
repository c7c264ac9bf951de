"""``prompttuner render``: what would reach sbatch, cron or systemd, complete and unsent."""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prompttuner.cli.frame import context

if TYPE_CHECKING:
    from prompttuner.config import Settings

__all__ = ["app", "controller_job", "own_command", "render_one", "rendered_agent", "rendered_controller"]

app = typer.Typer(help="Show what would reach sbatch, cron or systemd.", no_args_is_help=True)

SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin")
EXAMPLE_UUID = "00000000-0000-4000-8000-000000000000"


@app.command()
def agent(
    gpu_type: Annotated[str | None, typer.Option(help="As Slurm names it.")] = None,
    setup: Annotated[list[str] | None, typer.Option(help="Shell line before the agent (repeatable).")] = None,
) -> None:
    """Show the script of an allocation, and the sbatch call that sends it."""
    typer.echo(rendered_agent(context.settings(), gpu_type, tuple(setup or ())), nl=False)


@app.command()
def controller() -> None:
    """Show the script of the controller that runs as a small Slurm job."""
    typer.echo(rendered_controller(context.settings()), nl=False)


@app.command()
def cron(
    scrontab: Annotated[bool, typer.Option("--scrontab", help="The form for scrontab.")] = False,
) -> None:
    """Show the line for crontab or scrontab."""
    typer.echo(render_one("cron.j2", context.settings(), scron=scrontab), nl=False)


@app.command()
def systemd() -> None:
    """Show the systemd user unit."""
    typer.echo(render_one("systemd.service.j2", context.settings()), nl=False)


def rendered_agent(settings: Settings, gpu_type: str | None = None, setup: tuple[str, ...] = ()) -> str:
    """The script of an allocation with an example UUID, after the sbatch call as a comment. Asks Slurm nothing."""
    from prompttuner.slurm.backend import AllocationRequest
    from prompttuner.slurm.script import DEFAULT_WALLTIME_S, agent_script, build_script

    request = AllocationRequest(
        EXAMPLE_UUID,
        settings.spool_dir / "agents" / EXAMPLE_UUID,
        "example",
        settings.slurm.gpus_per_agent,
        gpu_type,
        None,
        setup,
    )
    script = build_script(
        request,
        settings.slurm,
        walltime_s=settings.slurm.walltime_s or DEFAULT_WALLTIME_S,
        offline=settings.slurm.offline,
        templates=settings.slurm.templates or settings.home / "templates",
    )
    head, _, rest = agent_script(script).partition("\n")
    return f"{head}\n# sent with: sbatch {shlex.join(script.command_line)} SCRIPT\n{rest}"


def rendered_controller(settings: Settings) -> str:
    """The script of the controller job."""
    return render_one("controller.sh.j2", settings)


def own_command() -> list[str]:
    """Words that call this very prompttuner from anywhere."""
    script = Path(sys.executable).with_name("prompttuner")
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", "from prompttuner.cli import main; main()"]


def _environment(settings: Settings) -> dict[str, str]:
    """What ticks need that cron and systemd do not give them: where home is, and how to reach Slurm."""
    needed = {"PROMPTTUNER_HOME": str(settings.home)}
    if settings.backend == "slurm":
        squeue = shutil.which("squeue")
        folder = "/usr/bin" if squeue is None else str(Path(squeue).parent)
        if folder not in SYSTEM_PATH:
            needed["PATH"] = ":".join([folder, *SYSTEM_PATH])
        if "SLURM_CONF" in os.environ:
            needed["SLURM_CONF"] = os.environ["SLURM_CONF"]
    return needed


def controller_job(settings: Settings) -> str:
    """Name of the controller's own Slurm job; one user's homes have different ones."""
    return f"pt-controller-{hashlib.sha256(os.fsencode(settings.home)).hexdigest()[:8]}"


def render_one(name: str, settings: Settings, *, scron: bool = False) -> str:
    """A template that needs no allocation: its values are the settings and how to call this prompttuner."""
    from prompttuner.sbatch_templates import check_lines, render

    words = own_command()
    wait_s = math.ceil(2 * settings.owner_expiry_s) + 10
    values = {
        "settings": settings,
        "command": shlex.join(words),
        "words": words,
        "environment": _environment(settings),
        "log_dir": settings.logs_dir,
        "setup": check_lines(settings.slurm.setup, "slurm.setup"),
        "minutes": max(1, round(settings.cron_tick_s / 60)),
        "scron": scron,
        "job_name": controller_job(settings),
        "wait_s": wait_s,  # the one before may have been lost with its node: its ownership has to run out first
    }
    return render(name, values, settings.slurm.templates or settings.home / "templates")
