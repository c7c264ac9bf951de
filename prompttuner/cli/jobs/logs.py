"""``prompttuner logs``: a job's events and its workers' journals, merged by time."""

from __future__ import annotations

import json as json_lib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.arguments import JobWord
from prompttuner.cli.frame.output import JsonFlag
from prompttuner.cli.state.reading import find_job, one_job, open_store
from prompttuner.errors import NotFound
from prompttuner.protocol.files import read_message, understood
from prompttuner.protocol.jobs import LeaseError, Progress
from prompttuner.spec.when import iso
from prompttuner.states import JOB_ENDED

__all__ = ["app"]

app = typer.Typer()

FOLLOW_S = 1.0
CHUNK = 1 << 20


@dataclass(slots=True)
class Tail:
    """What has been printed of a job so far."""

    seq: int = 0
    step: int = -1
    """Of the newest evaluation."""
    offsets: dict[Path, int] = field(default_factory=dict)
    errors: set[Path] = field(default_factory=set)


@app.command()
def logs(
    job: JobWord,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    agents: Annotated[bool, typer.Option(help="Also what its agents wrote to their standard output.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show what happened to a job (or an allocation), and what its workers wrote."""
    try:
        with one_job(job) as (_, row):
            job_id = row.id
    except NotFound:
        if not _print_allocation(job, json):
            raise
        return
    tail = Tail()
    while True:
        ended = _print_new(job_id, tail, json)
        if ended or not follow:
            break
        time.sleep(FOLLOW_S)
    if agents and not json:
        _print_agent_logs(job_id)


def _print_allocation(name: str, json: bool) -> bool:
    """What happened to an allocation, and its log; False if there is none of that name."""
    from prompttuner.db.queries import allocations, events

    store = open_store()
    if store is None:
        return False
    with store, store.read() as session:
        uuid = allocations.resolve(session, name)
        if uuid is None:
            return False
        rows = events.latest(session, 1000, allocation=uuid)
        detail = allocations.get(session, uuid).end_detail
    for row in rows:
        line = {"at": row.at, "by": "controller", "what": row.kind, "why": row.cause, "data": row.data}
        typer.echo(json_lib.dumps(line, default=str) if json else _text(line))
    if not json:
        if detail:
            typer.echo(f"It ended before it was warm: {detail}")
        _print_log(context.settings().spool_dir, uuid)
    return True


def _print_new(job_id: str, tail: Tail, json: bool) -> bool:
    """Print what is new since the last call, by time; True once the job has ended."""
    events, ended = _events(job_id, tail)
    spool_dir = context.settings().spool_dir
    folder = spool_dir / "jobs" / job_id
    found = [*events, *_evaluations(folder, tail), *_agents(spool_dir, job_id, tail), *_errors(folder, tail)]
    for line in sorted(found, key=lambda line: float(line["at"] or 0)):
        typer.echo(json_lib.dumps(line, default=str) if json else _text(line))
    return ended


def _events(job_id: str, tail: Tail) -> tuple[list[dict[str, Any]], bool]:
    from prompttuner.db.queries import events

    store = open_store()
    if store is None:
        return [], False
    with store, store.read() as session:
        ended = find_job(session, job_id).state in JOB_ENDED  # first, so that its last event is seen too
        rows = events.read_after(session, tail.seq, job=job_id)
    if rows:
        tail.seq = rows[-1].seq
    lines = [{"at": row.at, "by": "controller", "what": row.kind, "why": row.cause, "data": row.data} for row in rows]
    return lines, ended


def _evaluations(folder: Path, tail: Tail) -> Iterator[dict[str, Any]]:
    """Evaluations that are newer than the last one printed (a later generation repeats those before it)."""
    for path in sorted(folder.glob("g*/*/progress.json")):
        progress = understood(read_message(Progress, path))
        if progress is None:
            continue
        for step, metric in progress.evaluations or ():
            if step > tail.step:
                tail.step = step
                data = {"iteration": step, "metric": metric}
                yield {"at": progress.at, "by": _member(path), "what": "evaluated", "why": "", "data": data}


def _agents(spool_dir: Path, job_id: str, tail: Tail) -> Iterator[dict[str, Any]]:
    """What the job's agents wrote about it in their journals."""
    for name in sorted({path.name for path in (spool_dir / "jobs" / job_id).glob("g*/*")}):
        for entry in _new_lines(spool_dir / "agents" / name / "journal.jsonl", tail):
            if entry.pop("job", None) == job_id:
                at, what = entry.pop("at", None), entry.pop("event", "")
                yield {"at": at, "by": f"agent {name[:8]}", "what": what, "why": entry.pop("error", ""), "data": entry}


def _new_lines(path: Path, tail: Tail) -> Iterator[dict[str, Any]]:
    """Complete JSON lines that were added since the last call."""
    start = tail.offsets.get(path, 0)
    try:
        with path.open("rb") as handle:
            handle.seek(start)
            data = handle.read()
    except OSError:
        return  # not there yet, or momentarily unreadable on a network file system: the next look sees it
    complete = data[: data.rfind(b"\n") + 1]
    tail.offsets[path] = start + len(complete)
    for raw in complete.splitlines():
        try:
            value = json_lib.loads(raw)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _errors(folder: Path, tail: Tail) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("g*/*/error.json")):
        if path in tail.errors:
            continue
        error = understood(read_message(LeaseError, path))
        if error is not None:
            tail.errors.add(path)
            at, data = error.at or path.stat().st_mtime, {"kind": error.kind, "trace": error.trace}
            yield {"at": at, "by": _member(path), "what": "error", "why": error.message, "data": data}


def _print_agent_logs(job_id: str) -> None:
    """The agents' own log files, of those that were members of the job."""
    spool_dir = context.settings().spool_dir
    names = sorted({path.name for path in (spool_dir / "jobs" / job_id).glob("g*/*") if path.is_dir()})
    for name in names:
        _print_log(spool_dir, name)


def _print_log(spool_dir: Path, name: str) -> None:
    path = spool_dir / "agents" / name / "log.txt"
    if path.is_file():
        typer.echo(f"--- agent {name} ---")
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - CHUNK))
            typer.echo(handle.read().decode(errors="replace"), nl=False)


def _member(path: Path) -> str:
    """``g3/ab12cd34``: generation and agent, shortened."""
    return f"{path.parent.parent.name}/{path.parent.name[:8]}"


def _text(line: dict[str, Any]) -> str:
    data = dict(line["data"] or {})
    trace = data.pop("trace", None)
    pairs = " ".join(f"{key}={_short(value)}" for key, value in data.items() if value is not None)
    when = iso(float(line["at"])) if line["at"] else "-"
    text = "  ".join(part for part in (when, line["by"], line["what"], line["why"], pairs) if part)
    return f"{text}\n{trace}" if trace else text


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
