"""From intents to allocations: settings in the spool, sbatch through the backend, limits that keep us polite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prompttuner.controller.act.projection import order_for, write_order
from prompttuner.controller.act.transaction import Tx
from prompttuner.db.tables.models import Allocation
from prompttuner.db.upkeep import retention
from prompttuner.errors import SpecError
from prompttuner.files import make_private_dir
from prompttuner.policy.contract.snapshot import SiteLimits
from prompttuner.protocol.agents import AgentSettings
from prompttuner.protocol.files import write_message
from prompttuner.slurm.backend import AllocationRequest, SubmitRefused, SubmitUnknown
from prompttuner.slurm.slurm_backend import SlurmBackend
from prompttuner.states import AllocationState

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from prompttuner.config import Settings
    from prompttuner.controller.context import Context

__all__ = ["check_within_cap", "gpus_per_agent", "limits_now", "most_gpus", "submit_intents"]

DEFAULT_MAX_GPUS = 8
"""GPUs held at a time where neither the user nor the site says otherwise: unknown means modest."""


def most_gpus(settings: Settings) -> int:
    """GPUs that may be held at a time."""
    gpus = settings.local.slots if settings.backend == "local" else (settings.max_gpus or DEFAULT_MAX_GPUS)
    return gpus if settings.max_gpus is None else min(gpus, settings.max_gpus)


def check_within_cap(settings: Settings, gpus: int) -> None:
    """Refuse a job that could never run.

    Raises:
        SpecError: it needs more GPUs than may be held.
    """
    most = most_gpus(settings)
    if gpus > most:
        key = "local.slots or max_gpus" if settings.backend == "local" else "max_gpus"
        raise SpecError(f"{gpus} GPUs at a time are more than the {most} that may be held here (setting {key})")


def gpus_per_agent(ctx: Context) -> int:
    return ctx.settings.slurm.gpus_per_agent if ctx.settings.backend == "slurm" else 1


def limits_now(ctx: Context, allocations: Sequence[Allocation]) -> SiteLimits:
    """What may be held and asked for in this tick."""
    s = ctx.settings
    held = sum(a.gpus for a in allocations)
    allowed = ctx.gate.allowance(ctx.now(), held, len(allocations), gpus_per_agent(ctx))
    return SiteLimits(
        gpus=most_gpus(s),
        allocations=float("inf") if s.max_jobs is None else s.max_jobs,
        requests_now=allowed.requests_now,
        idle_limit_s=s.idle_limit_s,
        walltime_s=walltime_s(ctx) or float("inf"),
        gpu_hours_left=hours_left(ctx, s.max_gpu_hours),
        warm_pool=s.pool == "warm",
        prewarm=s.prewarm,
    )


def hours_left(ctx: Context, budget: float | None) -> float:
    """GPU-hours that all allocations ever made leave of a budget; see policy/budget.py for what that stops."""
    if budget is None:
        return float("inf")

    def spent(session: Session) -> float:
        held = float(session.scalar(retention.held_gpu_seconds(ctx.now())) or 0.0)
        return held + retention.forgotten_gpu_seconds(session)

    return max(0.0, budget - ctx.store.query(spent) / 3600.0)


def walltime_s(ctx: Context) -> float | None:
    s = ctx.settings
    if s.backend == "local":
        return s.local.walltime_s
    # An agent must know its end, so where the user says nothing the partition is asked.
    found: float | None = ctx.backend.walltime_s() if isinstance(ctx.backend, SlurmBackend) else s.slurm.walltime_s
    return found


def submit_intents(ctx: Context, uuids: Sequence[str]) -> int:
    """Submit allocations whose intent was committed; returns how many the resource manager has taken.

    An intent whose answer is lost stays an intent: it is looked for by its name, and never sent again. Once failures
    make submissions pause, the other intents are given up unsent: each try may wait for its time-out.

    Raises:
        NotOwner: another controller has taken over (this one was asleep, say); nothing more is submitted.
    """
    taken, failures = 0, 0
    for uuid in uuids:
        ctx.store.keep(ctx.ownership)
        if failures and (pause := ctx.gate.problem(ctx.now())):
            _record(ctx, uuid, None, pause)
            continue
        allocation = ctx.store.query(lambda session, u=uuid: session.get_one(Allocation, u))  # type: ignore[misc]
        ctx.store.confirm(ctx.ownership)
        request = _prepare(ctx, allocation)
        try:
            native = ctx.backend.submit(request)
        except SubmitRefused as error:
            failures += 1
            ctx.gate.failed(ctx.now(), str(error))
            ctx.warn(str(error))
            _record(ctx, uuid, None, str(error))
            continue
        except SubmitUnknown as error:
            failures += 1
            ctx.gate.failed(ctx.now(), str(error))
            ctx.warn(f"{error}; it is looked for by its name {request.name}")
            continue
        ctx.gate.submitted(ctx.now())
        taken += 1
        _record(ctx, uuid, native, "")
    return taken


def _prepare(ctx: Context, allocation: Allocation) -> AllocationRequest:
    s = ctx.settings
    folder = make_private_dir(ctx.spool.agent(allocation.uuid))
    place = allocation.place or {}
    limit = walltime_s(ctx)
    settings = AgentSettings(
        agent=allocation.uuid,
        pool=allocation.pool,
        model=allocation.model,
        dtype=str(place.get("dtype") or "auto"),
        trust_remote_code=tuple(place.get("trust_remote_code") or ()),
        gpus=allocation.gpus,
        threads=s.threads,
        idle_limit_s=s.idle_limit_s,
        heartbeat_s=s.heartbeat_s,
        poll_s=s.poll_s,
        loss_timeout_s=s.loss_timeout_s,
        checkpoint_every_s=s.checkpoint_every_s,
        checkpoint_every_steps=s.checkpoint_every_steps,
        interface="lo" if s.backend == "local" else s.slurm.interface,
        bank_dirs=tuple(str(path) for path in s.all_bank_dirs),
        jobs_dir=str(ctx.spool.jobs),
        stay_warm=s.pool == "warm",
        walltime_s=limit,
    )
    write_message(folder / AgentSettings.FILE, settings)
    write_order(ctx.spool, allocation, order_for(allocation, None, ctx.ownership.generation), ctx.now())
    return AllocationRequest(
        uuid=allocation.uuid,
        folder=folder,
        pool=allocation.pool,
        gpus=allocation.gpus,
        gpu_type=place.get("gpu_type"),
        walltime_s=None if limit is None else int(limit),
        setup=tuple(place.get("setup") or ()),
    )


def _record(ctx: Context, uuid: str, native: str | None, refusal: str) -> None:
    def work(session: Session) -> None:
        tx = Tx(session, ctx.now())
        allocation = session.get_one(Allocation, uuid)
        if native is None:
            tx.end_allocation(allocation, "refused", f"not submitted: {refusal}")
            return
        allocation.native_id, allocation.submitted_at = native, tx.now
        allocation.order = {**(allocation.order or {}), "seq": 1}
        if allocation.state == AllocationState.INTENT and allocation.started_at is None:
            tx.allocation_state(allocation, AllocationState.PENDING, f"submitted as {native}")

    ctx.store.transact(ctx.ownership, work)
