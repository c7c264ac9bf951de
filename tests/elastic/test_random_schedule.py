"""Random schedules of growing, shrinking, leaving and SIGKILL: every step is applied once, and the job ends."""

from __future__ import annotations

import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from local_job import FAST, Job, check_journal, paced_spec

AGENTS = "abcdef"
STEPS = 300


@pytest.mark.parametrize(("way", "seed"), [("in_place", 0), ("in_place", 1), ("in_place", 2), ("restart", 3)])
def test_any_schedule_applies_every_step_once(way: str, seed: int, tmp_path: Path, jobs: list[Job]) -> None:
    rng = random.Random(seed)
    settings = replace(FAST, way=way, checkpoint_steps=10)
    job = Job(tmp_path / "job", paced_spec(iterations=STEPS, step_s=0.02), settings=settings, quick=3)
    jobs.append(job)
    kills = 0
    job.assign(["a"])
    job.wait_step(2, ["a"])
    for _ in range(7):
        plan = job.plan
        assert plan is not None
        job.reap()
        event = rng.choice(["plan", "plan", "kill", "leave"])
        if event == "plan" or len(plan.members) < 2:
            members = rng.sample(AGENTS, rng.randint(1, 4))
            if not set(members) & set(plan.members):
                members[0] = plan.members[-1]
            job.assign(members)
        else:
            victim = rng.choice(plan.members)
            job.signal(victim, signal.SIGKILL if event == "kill" else signal.SIGTERM)
            kills += event == "kill"
            job.wait_end(victim)
            members = [member for member in plan.members if member != victim]
        job.wait_step(2, members)
    job.release()
    plan = job.plan
    assert plan is not None
    for agent in plan.members:
        job.wait_end(agent)
    _, done, _ = job.result()
    assert done["step"] == STEPS
    lost = check_journal(job, STEPS, lambda step: list(range(step * 8, step * 8 + 8)))
    # In place only the interrupted step is done again; with a restart what came after the last checkpoint is.
    assert sum(lost.values()) <= kills * (1 if way == "in_place" else settings.checkpoint_steps + 1)
