"""A running job's look-out for newer plans."""

from __future__ import annotations

import time
from pathlib import Path

from prompttuner.protocol.jobs import Membership
from prompttuner.worker.elastic.rendezvous import PlanRendezvous
from prompttuner.worker.membership import propose, read_membership

__all__ = ["PlanWatch", "plan_for"]


class PlanWatch:
    """Rank 0's look-out for a newer plan whose newcomers are ready: until then the running members go on tuning."""

    def __init__(self, rendezvous: PlanRendezvous, plan: Membership) -> None:
        self._rendezvous = rendezvous
        self._plan = plan
        self._settings = rendezvous.settings
        self._looked_at = -rendezvous.settings.poll_s
        self._newest: Membership | None = None
        self._seen_at = 0.0

    def change_is_ready(self) -> bool:
        """Whether to stop after this step. Newcomers that keep everybody waiting too long are planned away."""
        now = time.monotonic()
        if self._newest is None and now - self._looked_at < self._settings.poll_s:
            return False
        self._looked_at = now
        newest = read_membership(self._rendezvous.job_dir)
        if newest is None or newest.generation <= self._plan.generation:
            return False
        if self._newest is None or newest.generation > self._newest.generation:
            self._newest, self._seen_at = newest, now
        if newest.stop is not None:
            return True
        missing = self._rendezvous.newcomers_missing(newest, self._plan.members)
        if missing and now - self._seen_at > self._settings.join_timeout_s:
            propose(self._rendezvous.job_dir, newest.without(missing, by=self._rendezvous.agent))
            return False
        return not missing


def plan_for(job_dir: Path, generation: int, wait_s: float) -> Membership | None:
    """The newest plan, which the file system may show late: at least ``generation`` within ``wait_s``, else None."""
    deadline = time.monotonic() + wait_s
    while True:
        plan = read_membership(job_dir)
        if plan is not None and plan.generation >= generation:
            return plan
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)
