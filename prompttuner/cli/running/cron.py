"""``prompttuner cron``: ticks from cron or scrontab."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from prompttuner.cli.frame import context
from prompttuner.errors import BackendError, ConfigError, NotFound

if TYPE_CHECKING:
    from prompttuner.config import Settings

__all__ = ["app"]

app = typer.Typer(help="Make ticks from cron or scrontab.", no_args_is_help=True)

CALL_LIMIT_S = 30.0
OWN = frozenset({"home", "cron_tick_s"})
"""Settings that the line itself carries."""
Program = Annotated[
    str | None, typer.Option("--with", metavar="PROGRAM", help="crontab or scrontab; default: what is here.")
]


@app.command()
def install(program: Program = None) -> None:
    """Add a line that makes a tick every cron_tick_s; an older one of the same home is replaced."""
    from prompttuner.cli.running.render import render_one

    settings = context.settings()
    _check_period(settings)
    chosen = _program(program)
    _tell_unseen(settings)
    settings.make_home()
    settings.logs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    begin, end = _marks(settings)
    lines = render_one("cron.j2", settings, scron=chosen == "scrontab").splitlines()
    _write(chosen, [*_without(_read(chosen), settings), begin, *lines, end])
    typer.echo(
        f"{chosen}: a tick every {max(1, round(settings.cron_tick_s / 60))} min, log {settings.logs_dir / 'tick.log'}"
    )


@app.command()
def remove(program: Program = None) -> None:
    """Take the line out again; jobs and agents go on, but nobody looks after them."""
    settings = context.settings()
    chosen = _program(program)
    before = _read(chosen)
    after = _without(before, settings)
    if after == before:
        raise NotFound(f"{chosen} has no line for {settings.home}")
    _write(chosen, after)
    typer.echo(f"{chosen}: the line for {settings.home} is gone")


@app.command()
def show(program: Program = None) -> None:
    """Show the lines that are installed for this home."""
    settings = context.settings()
    chosen = _program(program)
    lines = _read(chosen)
    begin, end = _marks(settings)
    if begin not in lines or end not in lines:
        raise NotFound(f"{chosen} has no line for {settings.home}; `prompttuner cron install` adds it")
    for line in lines[lines.index(begin) + 1 : lines.index(end)]:
        typer.echo(line)


def _check_period(settings: Settings) -> None:
    if settings.cron_tick_s > settings.idle_limit_s / 2:
        raise ConfigError(
            f"cron ticks every {settings.cron_tick_s:g} s are too rare for an idle limit of {settings.idle_limit_s:g} s"
            ": warm agents would end between ticks; lower cron_tick_s or raise idle_limit_s"
        )


def _tell_unseen(settings: Settings) -> None:
    """Warn of settings that hold here, and not where cron runs: of the environment, a project's file, or flags."""
    from prompttuner.config.layers import SYSTEM_CONFIG

    seen = {"default", str(SYSTEM_CONFIG), str(settings.home / "config.toml")}
    origins = context.layers().origins
    unseen = [f"{key} ({origin})" for key, origin in origins.items() if origin not in seen and key not in OWN]
    if unseen:
        sys.stderr.write(
            f"warning: cron's ticks will not know {', '.join(unseen)}: write them to {settings.home / 'config.toml'}\n"
        )


def _program(asked: str | None) -> str:
    """The one that was asked for, else scrontab where the site has switched it on, else crontab."""
    if asked is not None:
        if asked not in {"crontab", "scrontab"}:
            raise ConfigError(f"--with {asked}: must be crontab or scrontab")
        if shutil.which(asked) is None:
            raise NotFound(f"there is no {asked} here")
        return asked
    if shutil.which("scrontab") is not None and _scron_is_on():
        return "scrontab"
    if shutil.which("crontab") is None:
        raise NotFound("neither scrontab nor crontab here: use `prompttuner run`, or `prompttuner controller start`")
    return "crontab"


def _scron_is_on() -> bool:
    from prompttuner.slurm.command import SlurmClient

    try:
        text = SlurmClient(context.settings().slurm.call_timeout_s).run("scontrol", "show", "config")
    except BackendError:
        return False
    return any(line.startswith("ScronParameters") and "enable" in line for line in text.splitlines())


def _marks(settings: Settings) -> tuple[str, str]:
    return f"# prompttuner: begin {settings.home}", f"# prompttuner: end {settings.home}"


def _without(lines: list[str], settings: Settings) -> list[str]:
    """The lines less our own. A mark without its partner (somebody has edited the table) takes no other line along."""
    begin, end = _marks(settings)
    left: list[str] = []
    opened: int | None = None
    for line in lines:
        if line == begin:
            opened = len(left)
        left.append(line)
        if line == end and opened is not None:
            del left[opened:]
            opened = None
    return [line for line in left if line not in {begin, end}]


def _read(program: str) -> list[str]:
    done = _call([program, "-l"], None)
    if done.returncode:
        said = done.stderr.strip()
        if "no crontab" in said.lower():
            return []
        raise BackendError(f"{program} -l: {said or 'failed'}; is it allowed for you on this host?")
    return done.stdout.splitlines()


def _write(program: str, lines: list[str]) -> None:
    done = _call([program, "-"], "\n".join(lines) + "\n" if lines else "")
    if done.returncode:
        raise BackendError(f"{program}: {done.stderr.strip() or 'failed'}; nothing was changed")


def _call(command: list[str], text: str | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, input=text or "", capture_output=True, text=True, check=False, timeout=CALL_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"{command[0]} cannot be used: {error}") from None
