"""Jobs that wait for the test: a generation goes slowly once it has done a few steps, so that none ends too early.

A test plans changes while a job runs. Were the job as quick as it can, it could end (or pass the step that the test
looks for) while the test's own process is kept waiting by a busy machine.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompttuner.worker.plan_watch import PlanWatch

__all__ = ["agents_environment", "linger", "release"]

STEP_S = 1.0
"""A step that is lingered over takes so long, unless a change of plan is ready before."""
POLL_S = 0.01


def linger(quick: int) -> None:
    """In this process: after ``quick`` steps of a generation its rank 0 lingers, until ``release`` is called."""
    from prompttuner.worker.plan_watch import PlanWatch

    ready = PlanWatch.change_is_ready
    steps: Counter[PlanWatch] = Counter()

    def change_is_ready(watch: PlanWatch) -> bool:
        steps[watch] += 1
        until = time.monotonic() + STEP_S if steps[watch] > quick else 0.0
        while not ready(watch):
            if time.monotonic() >= until or _released(watch):
                return False
            time.sleep(POLL_S)
        return True

    PlanWatch.change_is_ready = change_is_ready  # type: ignore[method-assign]


def release(job_dir: Path) -> None:
    """Let the job run as quickly as it can, to its end."""
    (job_dir / "hurry").write_text("")


def agents_environment(quick: int) -> dict[str, str]:
    """Variables with which a controller's agents, wherever they start, linger too."""
    return {"PYTHONPATH": str(Path(__file__).parent / "lingering_site"), "PROMPTTUNER_TEST_LINGER": str(quick)}


def _released(watch: PlanWatch) -> bool:
    return (watch._rendezvous.job_dir / "hurry").exists()
