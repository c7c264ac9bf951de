"""Which commands there are, and where each of them lives. Nothing is imported until a command is used.

To add a command: write ``prompttuner/cli/<room>/<module>.py`` with ``app = typer.Typer()`` and the commands
registered on it, and add one line below. A *group* (``prompttuner bank list``) is the whole ``app``; otherwise the
``app`` holds the command of that name (several commands may share a module). The help text here is what ``prompttuner
--help`` shows; a test compares it with the first line of the command's own docstring. In the module, import what is
heavy (torch, SQLAlchemy, numpy, the controller) inside the functions; use ``prompttuner.cli.frame.context`` for the
settings, ``prompttuner.cli.state.reading`` for the database and ``prompttuner.cli.frame.output`` for tables and
``--json``. Raise the classes of ``prompttuner.errors``: the frame turns them into a message and an exit code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["ENTRIES", "Entry", "LazyGroup", "load"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One word after ``prompttuner``."""

    name: str
    module: str
    """Below ``prompttuner.cli``."""
    help: str
    panel: str
    group: bool = False


JOBS, RUNNING, STATE = "Jobs", "Running", "Set-up and state"

ENTRIES: tuple[Entry, ...] = (
    Entry("submit", "jobs.submit", "Submit one job, or a sweep of them.", JOBS),
    Entry("status", "jobs.status", "List jobs: state, progress, deadline, GPUs.", JOBS),
    Entry("show", "jobs.show", "Show all that is known about a job.", JOBS),
    Entry("explain", "jobs.show", "Say in words why a job waits, or why it has the GPUs it has.", JOBS),
    Entry("logs", "jobs.logs", "Show what happened to a job (or an allocation), and what its workers wrote.", JOBS),
    Entry("result", "jobs.result", "Show or copy the tuned prompt of a job.", JOBS),
    Entry("cancel", "jobs.change", "Cancel jobs; their checkpoints are kept.", JOBS),
    Entry("update", "jobs.change", "Change a job's deadline or priority.", JOBS),
    Entry("hold", "jobs.change", "Keep jobs from running until they are released.", JOBS),
    Entry("release", "jobs.change", "Let held jobs run again.", JOBS),
    Entry("scale", "jobs.change", "Give a job a fixed number of GPUs, or leave it to the policy again.", JOBS),
    Entry("events", "state.events", "Show what happened and why: jobs, leases, allocations, Slurm.", JOBS),
    Entry("top", "jobs.top", "Watch jobs, deadlines, GPUs and the pool in the terminal.", JOBS),
    Entry("purge", "jobs.purge", "Remove ended jobs with their folders: checkpoints, results and logs.", JOBS),
    Entry(
        "sbatch", "jobs.sbatch", "Submit a script with #SBATCH and #PROMPTTUNER lines, and answer as sbatch does.", JOBS
    ),
    Entry("pool", "running.pool", "Show the allocations that are held, and what they cost.", RUNNING, group=True),
    Entry("run", "running.run", "Be the controller in the foreground.", RUNNING),
    Entry("tick", "running.run", "Make one pass of the controller.", RUNNING),
    Entry("cron", "running.cron", "Make ticks from cron or scrontab.", RUNNING, group=True),
    Entry("controller", "running.controller", "Run the controller as a small Slurm job.", RUNNING, group=True),
    Entry("trace", "state.trace", "Import, generate and describe traces of jobs.", RUNNING, group=True),
    Entry(
        "replay",
        "running.replay",
        "Submit a trace's jobs to this site at the trace's times; can be cut off and resumed.",
        RUNNING,
    ),
    Entry("report", "state.report", "Write one HTML page: GPUs over time, deadlines met, cost, every job.", RUNNING),
    Entry("init", "running.init", "Find out what this site is like and write settings for it.", STATE),
    Entry("render", "running.render", "Show what would reach sbatch, cron or systemd.", STATE, group=True),
    Entry("simulate", "state.simulate", "Say what would have happened to a trace under each policy.", STATE),
    Entry("config", "state.config", "Show the settings and where each comes from.", STATE, group=True),
    Entry("bank", "state.bank", "Look after the Prompt Bank: list, add, import, publish.", STATE, group=True),
    Entry("doctor", "doctor.doctor", "Check this machine and these settings, and say what to do.", STATE),
    Entry("db", "state.db", "Look after the database.", STATE, group=True),
    Entry("fetch", "running.fetch", "Download a model ahead, for nodes without internet.", STATE),
)

_BY_NAME = {entry.name: entry for entry in ENTRIES}


def load(name: str) -> Any:
    """The real command of an entry, imported now.

    Raises:
        KeyError: there is no such entry.
    """
    entry = _BY_NAME[name]
    app: typer.Typer = import_module(f"prompttuner.cli.{entry.module}").app
    if entry.group:
        return typer.main.get_group(app)
    app._add_completion = False  # noqa: SLF001  # installing completion is the root command's business
    command: Any = typer.main.get_command(app)
    return command.commands[name] if isinstance(command, TyperGroup) else command


class LazyGroup(TyperGroup):
    """A group that lists its commands from the table and imports the one that is used."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Names of all commands, in the order of the table."""
        return [entry.name for entry in ENTRIES]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """A stand-in that knows the name and help of a command; None if there is no such command."""
        entry = _BY_NAME.get(cmd_name)
        if entry is None:
            return None
        return TyperCommand(name=entry.name, help=entry.help, rich_help_panel=entry.panel)

    def resolve_command(self, ctx: Any, args: Sequence[str]) -> Any:
        """The real command behind the words that were typed, imported now."""
        self.commands = dict.fromkeys(_BY_NAME)  # type: ignore[assignment]  # for "did you mean"
        name, command, rest = super().resolve_command(ctx, list(args))
        return name, command if name is None else load(name), rest
