"""What one controller works with: settings, spool, store, ownership, backend and policy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prompttuner import policy as policies
from prompttuner.config import Settings
from prompttuner.controller.act.gate import Gate
from prompttuner.controller.plan.pools import Pool
from prompttuner.controller.upkeep.bank_index import BankIndexer
from prompttuner.controller.upkeep.harvest import BankView
from prompttuner.policy.contract.plan import Policy
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.protocol.wire import Unread
from prompttuner.slurm.backend import Backend
from prompttuner.slurm.spool import Spool

if TYPE_CHECKING:
    from prompttuner.controller.observe.reports import Facts
    from prompttuner.controller.plan.experience import History
    from prompttuner.controller.upkeep.deadlines import Key, Message
    from prompttuner.controller.upkeep.metrics import Metrics
    from prompttuner.db import Ownership, Store
    from prompttuner.db.tables.models import Job

__all__ = ["Context", "make_backend", "open_context"]

log = logging.getLogger("prompttuner.controller")

SAY_AGAIN_S = 3600.0
MOST_WARNINGS = 1000


@dataclass(slots=True)
class Context:
    """One controller's world. ``ownership`` is set while it owns the state."""

    settings: Settings
    spool: Spool
    store: Store
    ownership: Ownership
    backend: Backend
    policy: Policy
    gate: Gate
    bank: BankView
    now: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic
    """Measures gaps between ticks; unlike ``now`` it never jumps."""
    warnings: dict[str, float] = field(default_factory=dict)
    """What was warned of, and when (``steady`` seconds)."""
    plan_at: float = float("-inf")
    """When the policy wants to plan next (Unix time) although there may be neither job nor allocation."""
    next_plan_s: float = 0.0
    """Period of cron's ticks where those come next; 0: a daemon ticks."""
    last_noted: float = float("-inf")
    """When jobs that wait were last explained (``steady`` seconds)."""
    heard: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(owner, seq) of the order that each agent says it obeys."""
    cancelled: dict[str, float] = field(default_factory=dict)
    """What the resource manager was told to end, by native id, and when (``steady`` seconds)."""
    unread: frozenset[Path] = frozenset()
    """Requests that could not be read in the last tick: no reason to tick again at once."""
    history: History | None = None
    """What past jobs tell, kept for a moment."""
    facts: Facts | None = None
    """What was last read and written to the rows: the same again needs no transaction."""
    all_looked_at: float = float("-inf")
    """When all facts, not only the new ones, were last compared with their rows (Unix time)."""
    told: dict[Key, Message] | None = None
    """Deadlines that were missed or endangered, and who must still be told; None until read."""
    dated: frozenset[str] | None = None
    """Active jobs with a deadline in the last tick; None: look for what ended unseen."""
    purge_again_at: float = float("-inf")
    """When to look for unfinished purges again (``steady`` seconds); a new controller looks at once."""
    metrics: Metrics | None = None
    """Set where figures are wanted."""
    pools: dict[str, Pool] = field(default_factory=dict)
    """Pools met so far, by key."""
    indexer: BankIndexer = field(init=False)
    """Keeps the database's index of the banks."""
    _specs: dict[str, ResolvedSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.indexer = BankIndexer(self.settings.all_bank_dirs)

    def specs_of(self, jobs: Sequence[Job]) -> Mapping[str, ResolvedSpec]:
        """Resolved specs by job id: they never change, so each is read from the database once. What cannot be
        understood (a row that was changed by hand) is told, and missing."""
        if any(job.id not in self._specs for job in jobs):
            from prompttuner.db.queries import jobs as job_rows

            read = {job: ResolvedSpec.read(value) for job, value in self.store.query(job_rows.active_specs).items()}
            for job, spec in read.items():
                if isinstance(spec, Unread):
                    self.warn(f"{job}: {spec.why}")
            self._specs = {job: spec for job, spec in read.items() if not isinstance(spec, Unread)}
        return self._specs

    def warn(self, message: str) -> None:
        """Say something in the log; the same again only after an hour."""
        now = self.steady()
        if now - self.warnings.get(message, float("-inf")) < SAY_AGAIN_S:
            return
        if len(self.warnings) >= MOST_WARNINGS:
            self.warnings.clear()
        self.warnings[message] = now
        log.warning("%s", message)


def make_backend(settings: Settings, spool: Spool) -> Backend:
    """The backend that the settings name."""
    if settings.backend == "local":
        from prompttuner.slurm.local import LocalBackend

        return LocalBackend(settings.home / "submitit", spool.agents)
    from prompttuner.slurm.slurm_backend import SlurmBackend

    return SlurmBackend(settings)


def open_context(settings: Settings, store: Store, ownership: Ownership) -> Context:
    """All parts of a controller that owns the state."""
    spool = Spool(settings.spool_dir).ensure()
    ctx = Context(
        settings,
        spool,
        store,
        ownership,
        make_backend(settings, spool),
        policies.get(settings.policy),
        Gate(spool.root / "gate.json", settings),
        BankView(settings.all_bank_dirs),
    )
    if settings.metrics_file is not None or settings.metrics_port is not None:
        from prompttuner.controller.upkeep.metrics import Metrics

        ctx.metrics = Metrics()
    return ctx
