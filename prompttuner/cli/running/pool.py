"""``prompttuner pool``: the allocations we hold, what they cost, and how to give them back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.asking import ask
from prompttuner.cli.frame.completion import allocation_words
from prompttuner.cli.frame.output import JsonFlag, print_json, print_table
from prompttuner.cli.state.trials import trial_lines, trial_views
from prompttuner.errors import SpecError, StateError
from prompttuner.protocol.requests import Drain, ReleaseAgent, ResumePool
from prompttuner.slurm.reasons import in_words
from prompttuner.spec.when import format_duration, iso

if TYPE_CHECKING:
    from sqlalchemy import Row

__all__ = ["allocation_view", "app"]

app = typer.Typer(help="Show the allocations that are held, and what they cost.")

RECENT = 50
COLUMNS = ["allocation", "Slurm", "state", "pool", "GPUs", "job", "since", "idle for", "ends in", "GPU time", "note"]

Which = Annotated[
    str | None,
    typer.Argument(
        metavar="ALLOCATION", help="Beginning of its id, or its Slurm job id.", autocompletion=allocation_words
    ),
]
Everything = Annotated[bool, typer.Option("--all", "-a", help="All of them.")]
Idle = Annotated[bool, typer.Option("--idle", help="Those without a job.")]


@app.callback(invoke_without_command=True)
def pool(
    ctx: typer.Context,
    all_: Annotated[bool, typer.Option("--all", "-a", help="The latest ended ones too.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show the allocations that are held, and what they cost."""
    if ctx.invoked_subcommand is not None:
        return
    now = time.time()
    views = _views(all_, now)
    paused = _paused(now)
    trials = trial_views(now)
    totals = {
        key: sum(view[key] for view in views) for key in ("gpu_seconds", "busy_s", "warm_s", "startup_s")
    }  # fmt: skip
    if json:
        print_json({"allocations": views, "totals": totals, "paused": paused, **trials, "now": now})
        return
    if not views:
        typer.echo("no allocations" + ("" if all_ else "; --all shows ended ones"))
    else:
        print_table(COLUMNS, [_row(view, now) for view in views])
        typer.echo(
            f"GPU time {format_duration(totals['gpu_seconds'])}: busy {format_duration(totals['busy_s'])}, "
            f"warm and idle {format_duration(totals['warm_s'])}, start-up {format_duration(totals['startup_s'])}"
        )
    if paused:
        typer.echo(f"submissions: {paused}")
    for line in trial_lines(trials):
        typer.echo(line)


@app.command()
def drain(which: Which = None, all_: Everything = False, idle: Idle = False) -> None:
    """Let allocations take no new job; each ends when its job has."""
    _ask(Drain, which, all_, idle)


@app.command()
def release(which: Which = None, all_: Everything = False, idle: Idle = False) -> None:
    """Give allocations back now; their jobs go on elsewhere from their last checkpoint."""
    _ask(ReleaseAgent, which, all_, idle)


@app.command()
def resume(
    pool: Annotated[str | None, typer.Argument(metavar="POOL", help="Beginning of its name; without one all.")] = None,
) -> None:
    """Try pools at once that paused because their allocations ended before they were warm."""
    (answer,) = ask([ResumePool(pool=pool or "")])
    if answer.refused:
        raise StateError(answer.message)
    typer.echo(answer.message if answer.applied else "left in the inbox: the controller does it at its next tick")


def allocation_view(row: Row[Any], busy_s: float, now: float) -> dict[str, Any]:
    """One allocation, of which leases took ``busy_s``. ``gpu_seconds`` is all it has cost, idle time included."""
    status = row.status or {}
    end = row.ended_at or now
    held = 0.0 if row.started_at is None else max(0.0, end - row.started_at)
    startup = 0.0 if row.started_at is None else max(0.0, (row.warm_at or end) - row.started_at)
    busy = min(busy_s, held - startup)
    parts = {"busy_s": busy, "startup_s": startup, "warm_s": held - startup - busy}
    idle_since = row.state_since if row.state == "warm" else None
    return {
        "allocation": row.uuid,
        "native_id": row.native_id,
        "native_state": row.native_state,
        "reason": row.reason,
        "state": str(row.state),
        "pool": row.pool,
        "model": row.model,
        "gpus": row.gpus,
        "gpu": status.get("gpu") or None,
        "job": row.job_id or row.reserved_for,
        "node": row.node or row.host,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "state_since": row.state_since,
        "idle_since": idle_since,
        "ends_at": row.ends_at,
        "ended_at": row.ended_at,
        "end_reason": row.end_reason,
        "end_source": row.end_source,
        "end_cause": row.end_cause,
        "end_detail": row.end_detail,
        "suspect_since": row.suspect_since,
        "drain": row.drain,
        "leases": status.get("leases", 0),
        "gpu_seconds": held * row.gpus,
        **{key: value * row.gpus for key, value in parts.items()},
    }


def _views(ended_too: bool, now: float) -> list[dict[str, Any]]:
    from prompttuner.cli.state.reading import open_store
    from prompttuner.db.queries import allocations, leases
    from prompttuner.states import ALLOCATION_ENDED

    store = open_store()
    if store is None:
        return []
    with store, store.read() as session:
        rows = list(allocations.load_live(session))
        if ended_too:
            ended = allocations.find(session, states=[str(state) for state in ALLOCATION_ENDED], limit=RECENT)
            rows = [*reversed(ended), *rows]
        busy = leases.held_seconds(session, [row.uuid for row in rows], now)
        return [allocation_view(row, busy.get(row.uuid, 0.0), now) for row in rows]


def _row(view: dict[str, Any], now: float) -> list[str]:
    idle = "" if view["idle_since"] is None else format_duration(max(0.0, now - view["idle_since"]))
    ends = "" if view["ends_at"] is None or view["ended_at"] else format_duration(max(0.0, view["ends_at"] - now))
    notes = [view["end_detail"] or view["end_reason"] or "", in_words(view["reason"])]
    if view["suspect_since"] is not None and not view["ended_at"]:
        notes.append(f"no heartbeat since {iso(view['suspect_since'])}")
    if view["drain"] and not view["ended_at"]:
        notes.append("takes no new job")
    return [
        view["allocation"][:8],
        view["native_id"] or "-",
        view["state"],
        view["pool"],
        str(view["gpus"]),
        view["job"] or "-",
        format_duration(max(0.0, now - view["state_since"])),
        idle,
        ends,
        format_duration(view["gpu_seconds"]),
        ", ".join(note for note in notes if note),
    ]


def _paused(now: float) -> str | None:
    from prompttuner.controller.act.gate import Gate

    gate = Gate.of(context.settings())
    return gate.problem(now) or gate.refusal()


def _ask(kind: type[Drain] | type[ReleaseAgent], which: str | None, everything: bool, idle: bool) -> None:
    if (which is not None) + everything + idle != 1:
        raise SpecError("which ones? give one allocation (`prompttuner pool` lists them), or --idle, or --all")
    name = "all" if everything else (which or "")
    if which in {"all", ""}:
        raise SpecError("write --all to mean all of them")
    (answer,) = ask([kind(allocation=name, idle=idle)])
    if answer.refused:
        raise StateError(answer.message)
    typer.echo(answer.message if answer.applied else "left in the inbox: the controller does it at its next tick")
