"""One short trace replayed twice on the real cluster: by a daemon, and by cron-like ticks that are killed at random."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from slurm_cluster import Cluster
from slurm_site import SlurmUser

from prompttuner.controller.replay import Entry, Replay, schedule, wait_and_submit
from prompttuner.smallmodel import tasks
from prompttuner.states import JOB_ENDED
from prompttuner.trace.job import TraceJob

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

TICK = [sys.executable, "-c", "from prompttuner.cli import main; main()"]
KILLED = 0.5
"""Share of the cron ticks that are sent SIGKILL, unless they end before."""
LEAST_KILLS = 4
PATIENCE_S = 800.0
JOBS = [
    TraceJob(f"t{i}", 1.5 * i, "small", iters=1, step_s=1, max_gpus=1, deadline_s=1.5 * i + 60 * (1 + i % 3))
    for i in range(6)
]
ITERATIONS = (200, 300, 100, 400, 150, 250)
TARGETS = ("loss<=0.000001", "loss<=0.4", "loss<=0.000001", "loss<=0.4", "loss<=0.000001", "loss<=0.000001")
"""Out of reach, or reached on the way."""


def entries(home: Path) -> list[Entry]:
    """Submissions of six real tuning jobs that all end differently."""
    train, evaluation = tasks.write_dataset("reverse+upper", home / "data", train=128, evaluation=16)
    template = {
        "model": "small", "train": str(train), "eval": str(evaluation), "max_gpus": 1, "batch_size": 8,
        "initial_prompt": "text:reverse , upper case", "eval_every": 20, "target": "loss<=0.000001",
    }  # fmt: skip
    return [
        replace(entry, spec={**entry.spec, "max_iterations": ITERATIONS[i], "target": TARGETS[i], "seed": i})
        for i, entry in enumerate(schedule(JOBS, {}, template=template))
    ]


def outcome(user: SlurmUser, replay: Replay) -> dict[str, tuple[Any, ...]]:
    """(state, steps) by job of the trace."""
    states = {entry.trace_id: user.state(entry.job) for entry in replay.entries}
    return {name: (state["state"], state["step"]) for name, state in states.items()}


def by_daemon(user: SlurmUser) -> Replay:
    user.start()
    replay = Replay.start(user.home / "replay", entries(user.home), "test", 1.0, time.time())
    wait_and_submit(replay, user.settings, lambda done: None)
    user.wait(*(entry.job for entry in replay.entries))
    user.stop()
    return replay


def by_cron(user: SlurmUser, flags: list[str], rng: random.Random) -> tuple[Replay, int]:
    """Every second a tick, if the last one has ended; returns the replay and how many ticks were killed."""
    Replay.start(user.home / "replay", entries(user.home), "test", 1.0, time.time())
    kills, until = 0, time.monotonic() + PATIENCE_S
    while True:
        replay = Replay(user.home / "replay")  # opened anew, as every cron job does
        replay.submit_due(user.settings, time.time())
        with (user.home / "controller.log").open("ab") as log:
            tick = subprocess.Popen(
                [*TICK, f"--home={user.home}", *flags, "tick"], env=user.cluster.env, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            tick.wait(rng.uniform(0.3, 2.5) if rng.random() < KILLED else 60.0)
        except subprocess.TimeoutExpired:
            tick.kill()
            kills += tick.wait() == -9
        ended = all(user.state(entry.job)["state"] in JOB_ENDED for entry in replay.entries)
        if ended and kills >= LEAST_KILLS:
            return replay, kills
        assert time.monotonic() < until, f"{kills} kills\n{outcome(user, replay)}\n{user.report()}"
        time.sleep(rng.uniform(0.0, 1.0))


def test_ticks_killed_at_random_end_all_jobs_as_a_daemon_does(slurm: Cluster, tmp_path: Path) -> None:
    daemon = SlurmUser(slurm, tmp_path / "daemon", policy="prompttuner")
    try:
        calm = by_daemon(daemon)
    finally:
        daemon.stop()
    cron = SlurmUser(slurm, tmp_path / "cron", policy="prompttuner")
    disturbed, _ = by_cron(cron, cron.flags, random.Random(3))
    expected = outcome(daemon, calm)
    assert {state for state, _ in expected.values()} == {"done", "exhausted"}
    assert outcome(cron, disturbed) == expected
    for before, after in zip(calm.entries, disturbed.entries, strict=True):
        assert before.trace_id == after.trace_id
        one, other = load(daemon.result(before.job)), load(cron.result(after.job))
        assert one.keys() == other.keys()
        assert all(np.allclose(one[key], other[key], rtol=1e-3, atol=1e-4) for key in one), before.trace_id
    prompts = [load(daemon.result(entry.job))["prompt_embeddings"] for entry in calm.entries]
    assert len({prompt.tobytes() for prompt in prompts}) == len(prompts), "the jobs are told apart"
    assert all(sum(e["event"] == "start" for e in events) == 1 for events in cron.journals().values())
    assert all(len(states) == 1 for states in cron.accounted().values()), "a uuid was submitted twice"
