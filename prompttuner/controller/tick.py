"""One tick: requests, observe, finish, plan, act, submit, project, upkeep. Cut off anywhere, the next one mends it."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prompttuner.controller.act.apply import carry_out
from prompttuner.controller.act.gate import Gate
from prompttuner.controller.act.limits import Limits
from prompttuner.controller.act.projection import Projector
from prompttuner.controller.act.submission import Submitter
from prompttuner.controller.inbox import Inbox
from prompttuner.controller.observe.finishing import Finisher
from prompttuner.controller.observe.observer import Observer
from prompttuner.controller.plan.planner import Planner
from prompttuner.controller.resources import Resources, State
from prompttuner.controller.tick_report import TickReport
from prompttuner.controller.upkeep.deadlines import Deadlines
from prompttuner.controller.upkeep.harvest import BankView
from prompttuner.controller.upkeep.upkeep import Upkeep
from prompttuner.db.queries.live import Rows, live_rows
from prompttuner.policy.contract.plan import Policy
from prompttuner.slurm.backend import Backend

if TYPE_CHECKING:
    from prompttuner.controller.upkeep.metrics import Metrics

__all__ = ["Controller"]


class Controller:
    """All parts of a controller that owns the state; each remembers what it needs from one tick to the next."""

    def __init__(
        self, resources: Resources, backend: Backend, policy: Policy, *, metrics: Metrics | None = None
    ) -> None:
        gate = Gate.of(resources.settings)
        limits = self.limits = Limits(resources, backend, gate)
        bank = BankView(resources.settings.all_bank_dirs)
        self.resources = resources
        self.backend = backend
        self.gate = gate
        self.inbox = Inbox(resources)
        self.observer = Observer(resources, backend, gate)
        self.finisher = Finisher(resources, bank)
        self.planner = Planner(resources, policy, limits, bank)
        self.submitter = Submitter(resources, backend, gate, limits)
        self.projector = Projector(resources)
        self.deadlines = Deadlines(resources)
        self.upkeep = Upkeep(resources)
        self.metrics = metrics

    @property
    def state(self) -> State:
        """The rows."""
        return self.resources.state

    def tick(self) -> TickReport:
        """Do one pass; idempotent.

        Raises:
            NotOwner: another controller has taken over; nothing was written since.
            DatabaseError, SpoolError: state or spool cannot be used now.
        """
        with _collector_paused():
            started = time.monotonic()
            self.state.keep()
            requests = self.inbox.apply()
            rows = self.observer.observe(self.state.query(live_rows))
            rows, results = self.finisher.finish(rows, self.observer.facts)
            decision = self.planner.plan(rows)
            acted, rows = carry_out(self.resources, decision, rows)
            submitted = self.submitter.submit(acted.intents)
            self.submitter.cancel(acted.cancels, rows.allocations)
            rows = self.projector.project(rows, self.observer.heard)
            self.deadlines.tell(rows.jobs)
            self.upkeep.do(asked=requests > 0, results=results)
            report = TickReport(
                requests=requests,
                jobs=len(rows.jobs),
                allocations=len(rows.allocations),
                submitted=submitted,
                actions=[f"{type(action).__name__}: {action.reason}" for action in decision.plan.actions],
                wake_at=decision.plan.wake_at,
                seconds=time.monotonic() - started,
            )
            self._measure(report, rows)
            return report

    def _measure(self, report: TickReport, rows: Rows) -> None:
        if self.metrics is not None:
            now = self.resources.now()
            late = sum(1 for job in rows.jobs if job.deadline_at is not None and now > job.deadline_at)
            paused = self.gate.problem(now) is not None
            self.metrics.update(self.resources, report, sum(a.gpus for a in rows.allocations), late, paused=paused)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """What a tick loads lives until its end, so Python would walk thousands of rows again and again in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
