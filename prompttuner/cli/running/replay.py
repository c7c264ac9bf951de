"""``prompttuner replay``: a trace against the live site."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.output import JsonFlag, print_json, writing
from prompttuner.errors import SpecError
from prompttuner.words import Counted

if TYPE_CHECKING:
    from prompttuner.controller.replay import Replay, Submitted

__all__ = ["app"]

app = typer.Typer()


@app.command()
def replay(
    trace: Annotated[Path | None, typer.Argument(help="A trace; none with --resume.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the replay in the folder.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where the replay is kept; default: home/replays/TRACE.")] = None,
    spec: Annotated[Path | None, typer.Option(help="Tune jobs of this spec, instead of paced workers.")] = None,
    accelerate: Annotated[float, typer.Option(help="Divide gaps, deadlines and iterations by this.")] = 1.0,
    profile: Annotated[list[Path] | None, typer.Option(help="Profile of an LLM, or a folder of them; repeat.")] = None,
    first: Annotated[int | None, typer.Option(min=1, help="The first n jobs only.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Submit what is due and end: for cron.")] = False,
    json: JsonFlag = False,
) -> None:
    """Submit a trace's jobs to this site at the trace's times; can be cut off and resumed."""
    from prompttuner.controller.replay import Replay

    place = _place(folder, trace)
    running = Replay(place) if resume else _start(trace, place, accelerate, spec, profile or [], first)
    settings = context.settings()
    total, late = len(running.entries), 0.0
    refused: dict[str, str] = {}

    def tell(done: list[Submitted]) -> None:
        nonlocal late
        late = max(late, *(one.late_s for one in done))
        count = total - len(running.left) - len(done)
        for number, one in enumerate(done if not json else [], count + 1):
            behind = f", {one.late_s:.0f} s late" if one.late_s > 1 else ""
            typer.echo(f"{one.trace_id} -> {one.job}{behind} ({number} of {total})")
        tell_refused()

    def tell_refused() -> None:
        for name, message in running.refused(settings).items():
            if name not in refused:
                refused[name] = message
                sys.stderr.write(f"the controller refused {name}: {message}\n")

    if not json:
        pace = f", accelerated {running.accelerate:g} times: another workload" if running.accelerate != 1 else ""
        sys.stderr.write(f"{Counted(total, 'job')} of {running.source}{pace}; kept in {running.folder}\n")
    if once:
        done = running.submit_due(settings, time.time())
        if done:
            tell(done)
    else:
        _all(running, settings, tell)
    tell_refused()
    if json:
        print_json(
            {"folder": str(running.folder), "source": running.source, "accelerate": running.accelerate, "jobs": total,
             "left": len(running.left), "latest_s": late, "refused": refused,
             "ids": {entry.trace_id: entry.job for entry in running.entries}}
        )  # fmt: skip


def _all(running: Replay, settings: Any, tell: Any) -> None:
    from prompttuner.controller.replay import wait_and_submit

    try:
        wait_and_submit(running, settings, tell)
    except KeyboardInterrupt:
        sys.stderr.write(f"{Counted(len(running.left), 'job')} left; go on with --resume --folder {running.folder}\n")
        raise


def _place(folder: Path | None, trace: Path | None) -> Path:
    if folder is not None:
        return folder
    if trace is None:
        raise SpecError("name the trace, or the folder of the replay to go on with: --folder")
    return context.settings().home / "replays" / trace.stem


def _start(
    trace: Path | None, place: Path, accelerate: float, spec: Path | None, profiles: list[Path], first: int | None
) -> Replay:
    from prompttuner.controller.replay import Replay, schedule
    from prompttuner.profiles import load_profiles, remarks, stated
    from prompttuner.spec import load_values
    from prompttuner.trace.format import read_trace

    if trace is None:
        raise SpecError("name the trace to replay, or --resume one")
    jobs = read_trace(trace).require_clean().jobs[:first]
    template = load_values(spec, {}) if spec is not None else None
    llms, given = sorted({job.llm for job in jobs}), load_profiles(profiles)
    known = stated(llms, given)
    for remark in remarks(llms, given) if template is None else []:
        sys.stderr.write(f"note: {remark}\n")
    entries = schedule(jobs, known, accelerate=accelerate, template=template)
    with writing(place, "--folder"):
        return Replay.start(place, entries, str(trace), accelerate, time.time() - entries[0].at_s)
