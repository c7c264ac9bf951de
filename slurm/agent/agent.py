"""The agent's loop: read the order, drive the zygote, guard the clocks, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from prompttuner.files import append_line
from prompttuner.protocol.agents import AgentSettings, AgentStatus, Order
from prompttuner.protocol.files import write_message
from prompttuner.protocol.zygote import ZygoteEvent
from prompttuner.slurm.agent.guard import IdleGuard, WalltimeGuard
from prompttuner.slurm.agent.place import address_of, gpu_info, host_name, native_id
from prompttuner.slurm.spool import read_own

__all__ = ["Agent", "ZygoteLike"]

LEAVE_GRACE_S = 20.0
"""A worker that was told to leave gets this long before it is signalled, and as long again before it is killed."""
LOAD_LIMIT_S = 1800.0
READY_LIMIT_S = 900.0
"""A worker process that has not imported everything by then never will."""
ZYGOTE_RESTARTS = 3
LOAD_REASONS = {"site": "model unread", "host": "host"}
"""Why the agent ends, by whose fault a load failed; all else is the model's."""
IDLE_WORK_EVERY_S = 60.0
"""A warm agent without a job looks this often whether its own bank lacks anything; it does not count as a job."""
POOLLESS_GRACE_S = 5.0
"""Where placeholders are forbidden, an agent without a job waits only this long for its next order."""


class ZygoteLike(Protocol):
    """The agent's side of the zygote; see docs/architecture.md, "Agent and zygote"."""

    @property
    def alive(self) -> bool:
        """Whether the zygote still runs."""

    def load(self, model: str, dtype: str = "auto", trust_remote_code: bool = False) -> None:
        """Load a model, or make a loaded one the present one."""

    def lease(self, job_dir: Path, agent: str, generation: int, address: str) -> None:
        """Start a worker for a job."""

    def idle_work(self, bank_dir: Path, model: str) -> None:
        """Work for the bank until the next lease."""

    def end_lease(self) -> None:
        """Ask the worker to save a checkpoint and leave."""

    def kill_lease(self) -> None:
        """Kill the worker."""

    def poll(self) -> list[ZygoteEvent]:
        """Events that have come since the last call."""

    def exit(self) -> None:
        """End the zygote, and with it a worker that still runs."""


@dataclass(slots=True)
class Lease:
    job: str
    generation: int
    leaving_since: float | None = None
    signalled: bool = False


class Agent:
    """One allocation's agent. ``run`` returns (reason, detail) when it has ended."""

    def __init__(
        self,
        folder: Path,
        settings: AgentSettings,
        instance: str,
        zygote: Callable[[Path, AgentSettings], ZygoteLike] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.told_to_end = ""
        """Name of a signal that asked for the end; set by the signal handler."""
        self._clock = clock
        self._make_zygote = zygote or start_zygote
        self._zygote: ZygoteLike | None = None
        self._zygote_starts = 0
        self._idle = IdleGuard(settings.idle_limit_s, clock)
        self._walltime = WalltimeGuard(settings.walltime_s, settings.walltime_end_margin_s, clock)
        self._order = Order()
        self._wanted: tuple[str, int] | None = None
        self._finished: dict[str, int] = {}
        self._lease: Lease | None = None
        self._loading: tuple[str, float] | None = None
        self._ready = False
        self._born = self._started = clock()
        self._last_report = -1e9
        self._said = ""
        self._last_idle_work = -1e9
        self._last_said: AgentStatus | None = None
        self._end: tuple[str, str] | None = None
        self.status = AgentStatus(
            instance=instance,
            pid=os.getpid(),
            host=host_name(),
            address=address_of(settings.elastic.interface),
            native_id=native_id(),
            gpu=gpu_info(),
        )

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> tuple[str, str]:
        """Loop until something ends the agent; returns (reason, detail)."""
        self._journal("start", host=self.status.host, native_id=self.status.native_id)
        self.step()
        while self._end is None:
            time.sleep(self.settings.poll_s)
            self.step()
        return self._end

    def step(self) -> None:
        """One pass; all waiting happens between passes, so the guards always get their turn."""
        self._read_order()
        if self._end is None:
            self._tend_zygote()
            self._tend_lease()
            self._guard()
        self._report()

    def close(self) -> None:
        """End the zygote (and with it a lease that still runs) and leave a last status."""
        if self._zygote is not None:
            self._zygote.exit()
        self.status.state = "ended"
        self._report(force=True)
        self._journal("end", reason=self._end[0] if self._end else "crash")

    # -- orders -----------------------------------------------------------------------------------------------

    def _read_order(self) -> None:
        order = read_own(Order, self.folder / Order.FILE)
        if not isinstance(order, Order):
            self._say_once("" if order is None else f"order not understood: {order.why}")
            return
        if order.owner < self._order.owner or (order.owner, order.seq) == (self._order.owner, self._order.seq):
            return
        if order.owner == self._order.owner and order.seq < self._order.seq:
            return  # a stale read on a network file system
        self._order = order
        self._wanted = (order.job, order.generation) if order.job else None
        self.status.order_seq, self.status.order_owner = order.seq, order.owner
        if not order.admit:
            self._finish("refused", "the controller does not want this allocation")
        elif order.stop and self._lease is None:
            self._finish("released", "the controller gave it back")

    # -- zygote -----------------------------------------------------------------------------------------------

    def _tend_zygote(self) -> None:
        if self._zygote is None or not self._zygote.alive:
            self._start_zygote()
        assert self._zygote is not None
        for event in self._zygote.poll():
            self._on_event(event)
        model = self._order.model or self.settings.model
        if self._ready and self._loading is None and self._lease is None and self.status.model != model:
            self._loading = (model, self._clock())
            self.status.state = "loading" if self.status.model is None else "switching"
            self._zygote.load(model, self.settings.dtype, self.settings.trusts(model))
        if self._loading is not None and self._clock() - self._loading[1] > LOAD_LIMIT_S:
            self._finish("model unread", f"loading {self._loading[0]} took more than {LOAD_LIMIT_S:.0f} s")
        elif not self._ready and self._clock() - self._started > READY_LIMIT_S:
            self._finish("zygote", f"its worker process was not ready within {READY_LIMIT_S:.0f} s; see log.txt")

    def _start_zygote(self) -> None:
        if self._zygote is not None:
            self._on_event(ZygoteEvent(ev="lease_ended", outcome="crashed", error="the zygote died"))
            self._journal("zygote_died")
            self._zygote.exit()
        if self._zygote_starts > ZYGOTE_RESTARTS:
            self._finish("zygote", "the zygote died again and again; see log.txt")
            return
        self._zygote_starts += 1
        self._started = self._clock()
        self._ready, self._loading = False, None
        self.status.model, self.status.models = None, ()
        self.status.state = "starting"
        self._zygote = self._make_zygote(self.folder, self.settings)

    def _on_event(self, event: ZygoteEvent) -> None:
        kind = event.ev
        if kind == "ready":
            self._ready = True
            self.status.start_s = round(self._clock() - self._born, 3)
        elif kind == "loaded":
            self._loading = None
            self.status.model = event.model
            self.status.models = tuple(sorted({*self.status.models, event.model}))
            self.status.load_s = event.seconds
            self.status.loads += 1
            self._journal("load", model=event.model, seconds=self.status.load_s)
        elif kind == "load_failed":
            self._loading = None
            self.status.error = event.error or ""
            self._finish(LOAD_REASONS.get(event.kind or "", "model"), f"{event.model}: {event.error}")
        elif kind == "lease_started" and self._lease is not None:
            self.status.lease = "starting"
        elif kind == "lease_ended" and self._lease is not None:
            self._lease_ended(event)

    # -- leases -----------------------------------------------------------------------------------------------

    def _lease_ended(self, event: ZygoteEvent) -> None:
        assert self._lease is not None
        lease, self._lease = self._lease, None
        outcome = event.outcome or "crashed"
        generation = max(lease.generation, event.generation or 0)
        self._finished[lease.job] = max(generation, self._finished.get(lease.job, -1))
        self.status.lease = outcome
        self.status.error = event.error or ""
        self._journal("lease_end", job=lease.job, generation=generation, outcome=outcome, error=self.status.error)

    def _tend_lease(self) -> None:
        assert self._zygote is not None
        if self._lease is not None:
            self._tend_running_lease(self._lease)
        elif self._wanted is not None and self._may_start(*self._wanted):
            job, generation = self._wanted
            job_dir = Path(self.settings.jobs_dir) / job
            self._lease = Lease(job, generation)
            self.status.leases += 1
            self._journal("lease", job=job, generation=generation, model=self.status.model)
            self._zygote.lease(job_dir, self.settings.agent, generation, self.status.address)
        if self._lease is not None:
            self.status.job, self.status.generation = self._lease.job, self._lease.generation
            self.status.state = "busy"
            self._idle.busy()
        else:
            if self._loading is None and self.status.model is not None:
                self.status.state = "draining" if self._order.drain or self.told_to_end else "warm"
                self._idle.idle()
                self._work_for_the_bank(self.status.model)
            if self._wanted is None:
                self.status.job = None

    def _work_for_the_bank(self, model: str) -> None:
        assert self._zygote is not None
        now = self._clock()
        if (
            self.settings.elastic.bank_dirs
            and self._idle.idle_s >= 1.0
            and now - self._last_idle_work >= IDLE_WORK_EVERY_S
        ):
            self._last_idle_work = now
            self._zygote.idle_work(Path(self.settings.elastic.bank_dirs[0]), model)

    def _tend_running_lease(self, lease: Lease) -> None:
        """A worker follows its job's plan by itself; here only those that do not are dealt with."""
        assert self._zygote is not None
        if self._wanted is not None and self._wanted[0] == lease.job and not self.told_to_end:
            lease.generation = max(lease.generation, self._wanted[1])
            lease.leaving_since = None
            return
        now = self._clock()
        if lease.leaving_since is None:
            lease.leaving_since = now
        waited = now - lease.leaving_since
        if (self.told_to_end or waited > LEAVE_GRACE_S) and not lease.signalled:
            lease.signalled = True
            self._zygote.end_lease()
        elif waited > 2 * LEAVE_GRACE_S:
            self._zygote.kill_lease()

    def _may_start(self, job: str, generation: int) -> bool:
        model = self._order.model or self.settings.model
        return (
            self._ready
            and self._loading is None
            and self.status.model == model
            and generation > self._finished.get(job, -1)
            and not self.told_to_end
            and not self._walltime.near
        )

    # -- the guards -------------------------------------------------------------------------------------------

    def _guard(self) -> None:
        if self._walltime.near and not self.told_to_end:
            self.told_to_end = "walltime"
            self._journal("walltime_near")
        if self._lease is not None:
            return
        if self.told_to_end:
            self._finish("walltime" if self.told_to_end == "walltime" else "signal", self.told_to_end)
        elif self._order.stop:
            self._finish("released", "the controller gave it back")
        elif self._order.drain and self._wanted is None:
            self._finish("drained", "its end was near, or it was told to go")
        elif self._idle.expired:
            self._finish("idle", f"no job for {self._idle.idle_s:.0f} s")
        elif not self.settings.stay_warm and self.status.leases and self._idle.idle_s > POOLLESS_GRACE_S:
            self._finish("job ended", "placeholders are switched off here (pool = none)")

    def _finish(self, reason: str, detail: str) -> None:
        if self._end is None:
            self._end = (reason, detail)

    # -- reports ----------------------------------------------------------------------------------------------

    def _report(self, force: bool = False) -> None:
        """Write status.json at each change and each heartbeat; a full disk must not end a job."""
        self.status.idle_s = round(self._idle.idle_s, 1)
        left = self._walltime.left_s
        self.status.left_s = None if left is None else round(left, 1)
        said = replace(self.status, beat=0, idle_s=0.0, left_s=None)
        now = self._clock()
        if not force and said == self._last_said and now - self._last_report < self.settings.heartbeat_s:
            return
        self.status.beat += 1
        try:
            write_message(self.folder / AgentStatus.FILE, self.status)
        except OSError as error:
            print(f"prompttuner agent: status not written: {error}", flush=True)
            return
        self._last_said, self._last_report = said, now

    def _say_once(self, what: str) -> None:
        if what and what != self._said:
            print(f"prompttuner agent: {what}", flush=True)
        self._said = what

    def _journal(self, event: str, **data: Any) -> None:
        try:
            append_line(self.folder / "journal.jsonl", {"at": time.time(), "event": event, **data})
        except OSError as error:
            print(f"prompttuner agent: journal not written: {error}", flush=True)


def start_zygote(folder: Path, settings: AgentSettings) -> ZygoteLike:
    """The real zygote, logging to the agent's folder."""
    from prompttuner.worker.zygote.client import Zygote

    return Zygote.start(folder / "log.txt", settings.elastic.to_env())
