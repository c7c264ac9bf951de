"""From intents to allocations: settings in the spool, sbatch through the backend, limits that keep us polite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prompttuner.controller.act.gate import Gate
from prompttuner.controller.act.limits import Limits
from prompttuner.controller.act.projection import order_for, write_order
from prompttuner.controller.act.transaction import Tx
from prompttuner.controller.resources import Resources
from prompttuner.db.queries import allocations as allocation_rows
from prompttuner.db.queries import trials
from prompttuner.db.tables.models import Allocation
from prompttuner.db.tables.recorded import place_of
from prompttuner.errors import BackendError
from prompttuner.files import make_private_dir
from prompttuner.protocol.agents import AgentSettings
from prompttuner.protocol.files import write_message
from prompttuner.slurm.backend import AllocationRequest, Backend, SubmitRefused, SubmitTimeout, SubmitUnknown
from prompttuner.slurm.site.memory import needed_mb, weights_bytes
from prompttuner.slurm.slurm_backend import SlurmBackend
from prompttuner.states import AllocationState

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Submitter"]

KILL_AFTER_S = 60.0
"""An allocation that was told to end and has not after this long is ended through the resource manager."""
CANCEL_AGAIN_S = 30.0
"""What Slurm was told to end is not named to it again sooner: it may take its time, and does not want to be asked."""

_UNHEARD = frozenset({AllocationState.INTENT, AllocationState.PENDING, AllocationState.STARTING})
"""States in which an agent cannot hear that it shall end."""


class Submitter:
    """Tells the resource manager what to start and what to end."""

    def __init__(self, resources: Resources, backend: Backend, gate: Gate, limits: Limits) -> None:
        self._res = resources
        self._backend = backend
        self._gate = gate
        self._limits = limits
        self._cancelled: dict[str, float] = {}
        """What the resource manager was told to end, by native id, and when (steady seconds)."""

    def submit(self, uuids: Sequence[str]) -> int:
        """Submit allocations whose intent was committed; returns how many the resource manager has taken.

        An intent whose answer is lost stays an intent: it is looked for by its name, and never sent again. Once
        failures make submissions pause, the other intents are given up unsent: each try may wait for its time-out.

        Raises:
            NotOwner: another controller has taken over (this one was asleep, say); nothing more is submitted.
        """
        res, taken, failures = self._res, 0, 0
        for uuid in uuids:
            res.state.keep()
            if failures and (pause := self._gate.problem(res.now())):
                _record(res, uuid, None, pause)
                continue
            allocation = res.state.query(lambda session, u=uuid: allocation_rows.get(session, u))  # type: ignore[misc]
            res.state.confirm()
            request = self._prepare(allocation)
            try:
                native = self._backend.submit(request)
            except SubmitRefused as error:
                failures += 1
                self._gate.failed(res.now(), str(error))
                res.warn(str(error))
                _record(res, uuid, None, str(error))
                continue
            except SubmitUnknown as error:
                failures += 1
                self._gate.failed(res.now(), str(error), blocks=isinstance(error, SubmitTimeout))
                res.warn(f"{error}; it is looked for by its name {request.name}")
                continue
            self._gate.submitted(res.now())
            taken += 1
            given = self._backend.memory_given(request) if isinstance(self._backend, SlurmBackend) else None
            _record(res, uuid, native, "", given)
        return taken

    def _prepare(self, allocation: Allocation) -> AllocationRequest:
        res, s = self._res, self._res.settings
        folder = make_private_dir(res.spool.agent(allocation.uuid))
        place = place_of(allocation.place)
        limit = self._limits.walltime_s()
        settings = AgentSettings(
            agent=allocation.uuid,
            pool=allocation.pool,
            model=allocation.model,
            dtype=place.dtype,
            trust_remote_code=place.trust_remote_code,
            gpus=allocation.gpus,
            idle_limit_s=s.idle_limit_s,
            heartbeat_s=s.heartbeat_s,
            poll_s=s.poll_s,
            elastic=s.of_leases(),
            jobs_dir=str(res.spool.jobs),
            stay_warm=s.pool == "warm",
            walltime_s=limit,
        )
        write_message(folder / AgentSettings.FILE, settings)
        write_order(res.spool, allocation, order_for(allocation, None, res.state.generation), res.now())
        return AllocationRequest(
            uuid=allocation.uuid,
            folder=folder,
            pool=allocation.pool,
            gpus=allocation.gpus,
            gpu_type=place.gpu_type,
            mem_mb=needed_mb(weights_bytes(allocation.model)) if s.backend == "slurm" else None,
            walltime_s=None if limit is None else int(limit),
            setup=place.setup,
            options=self._exclusions(allocation.pool),
        )

    def _exclusions(self, pool: str) -> dict[str, str]:
        """Sbatch's ``--exclude``, with what the settings exclude anyway."""
        res = self._res
        if res.settings.backend != "slurm":
            return {}
        nodes = res.state.query(lambda session: trials.to_exclude(session, pool, res.now()))
        wanted = res.settings.slurm.extra.get("exclude", "")
        return {"exclude": ",".join(filter(None, [wanted, *nodes]))} if nodes else {}

    def cancel(self, released: Sequence[str], allocations: Sequence[Allocation]) -> None:
        """Tell the resource manager to end what no agent can hear of, or what did not listen.

        Args:
            released: uuids of allocations that were given up in this tick before they had started.
            allocations: all live ones.
        """
        res, now, steady = self._res, self._res.now(), self._res.steady()
        doomed = {
            a.native_id
            for a in allocations
            if a.drain
            and a.native_id is not None
            and a.job_id is None
            and (a.uuid in released or a.state in _UNHEARD or now - a.state_since > KILL_AFTER_S)
        }
        told = {name: at for name, at in self._cancelled.items() if name in doomed and steady - at < CANCEL_AGAIN_S}
        self._cancelled = told
        if not doomed - told.keys():
            return
        res.state.confirm()
        try:
            self._backend.cancel(sorted(doomed - told.keys()))
        except BackendError as error:
            res.warn(str(error))
        else:
            self._cancelled = dict.fromkeys(doomed, steady) | told


def _record(res: Resources, uuid: str, native: str | None, refusal: str, mem_mb: int | None = None) -> None:
    def work(session: Session) -> None:
        tx = Tx(session, res.now())
        allocation = session.get_one(Allocation, uuid)
        if native is None:
            tx.end_allocation(allocation, "refused", f"not submitted: {refusal}")
            return
        allocation.native_id, allocation.submitted_at = native, tx.now
        if mem_mb is not None:
            allocation.place = {**(allocation.place or {}), "mem_mb": mem_mb}
        allocation.order = {**(allocation.order or {}), "seq": 1}
        if allocation.state == AllocationState.INTENT and allocation.started_at is None:
            tx.allocation_state(allocation, AllocationState.PENDING, f"submitted as {native}")

    res.state.write(work)
