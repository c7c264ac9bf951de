"""Whole jobs on the real cluster while things go wrong: every job ends right, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lingering import agents_environment
from safetensors.numpy import load
from slurm_cluster import Cluster
from slurm_fixtures import ORDINARY_USER, as_ordinary_user
from slurm_site import SlurmUser

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
LONG = 240
"""Iterations of a job that is disturbed half-way."""

MakeUser = Callable[..., SlurmUser]


@pytest.fixture
def make_user(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeUser]:
    """Users; with ``linger`` a job waits at about that step of each generation, until ``hurry``."""
    made: list[SlurmUser] = []

    def make(linger: int | None = None, **settings: Any) -> SlurmUser:
        for key, value in (agents_environment(linger) if linger else {}).items():
            monkeypatch.setenv(key, value)
        user = SlurmUser(slurm, tmp_path / "home", **settings)
        made.append(user)
        user.start()
        return user

    yield make
    for user in made:
        user.stop()
    for user in made:
        user.check_times()


@pytest.fixture(scope="session")
def reference(slurm_session: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """Prompt and loss that the LONG job ends with when nothing goes wrong."""
    saved = dict(os.environ)
    os.environ.update(slurm_session.env)
    user = SlurmUser(slurm_session, tmp_path_factory.mktemp("undisturbed"), idle_limit_s=10)
    user.start()
    try:
        job = user.submit("undisturbed", LONG)
        assert user.wait(job)[0]["state"] == "exhausted"
        return user.result(job), user.loss(job)
    finally:
        user.stop()
        os.environ.clear()
        os.environ.update(saved)


@pytest.fixture(scope="session")
def undisturbed(reference: tuple[bytes, float]) -> bytes:
    """The prompt that the LONG job ends with when nothing goes wrong."""
    return reference[0]


def same_prompt(one: bytes, other: bytes) -> bool:
    """Equal within floating-point tolerance."""
    first, second = load(one), load(other)
    return first.keys() == second.keys() and all(np.allclose(first[k], second[k], rtol=1e-3, atol=1e-4) for k in first)


def check_right(user: SlurmUser, job: str, undisturbed: bytes) -> None:
    assert user.wait(job)[0]["state"] == "exhausted"
    assert user.state(job)["step"] == LONG
    assert same_prompt(user.result(job), undisturbed)


def check_no_double_admission(user: SlurmUser) -> None:
    """Each UUID was one Slurm job, and one agent: a second one would have started a second journal entry."""
    for uuid, states in user.accounted().items():
        assert len(states) == 1, f"{uuid} was submitted {len(states)} times"
    for uuid, events in user.journals().items():
        assert sum(event["event"] == "start" for event in events) == 1, uuid


def node_of(user: SlurmUser, job: str) -> str:
    """Node of the agent that works for a job."""
    busy = [uuid for uuid, events in user.journals().items() if any(e.get("job") == job for e in events)]
    return user.cluster.run("squeue", "-h", "-t", "RUNNING", "--name", f"pt-{busy[-1]}", "-o", "%N").strip()


def test_jobs_of_two_llms_share_warm_agents_and_nothing_is_left(make_user: MakeUser) -> None:
    user = make_user(idle_limit_s=25)
    second = user.another_model()
    jobs = [user.submit(f"a{index}") for index in range(3)] + [
        user.submit(f"b{index}", model=second) for index in range(2)
    ]
    ended = user.wait(*jobs)
    assert [(job["state"], job["step"]) for job in ended] == [("exhausted", 60)] * len(jobs)
    prompts = [user.result(job) for job in jobs]
    assert same_prompt(prompts[0], prompts[1])
    assert same_prompt(prompts[3], prompts[4])
    user.kill()  # nobody tells the agents to end any more
    user.until(lambda: not user.queue(), "no allocation is left after the idle limit")
    user.until(lambda: all("RUNNING" not in states for states in user.accounted().values()), "accounting has the ends")
    accounted = user.accounted()
    assert 0 < len(accounted) < len(jobs), "warm reuse: fewer Slurm jobs than tuning jobs"
    assert all(states == ["COMPLETED"] for states in accounted.values())
    journals = user.journals().values()
    loads = [sum(event["event"] == "load" for event in events) for events in journals]
    leases = [sum(event["event"] == "lease" for event in events) for events in journals]
    assert sum(leases) == len(jobs)
    assert any(lease > load for lease, load in zip(leases, loads, strict=True)), "one load, several leases"
    assert all(events[-1]["reason"] == "idle" for events in journals)
    check_no_double_admission(user)


def test_controller_killed_and_slurmctld_restarted_in_the_middle(make_user: MakeUser, undisturbed: bytes) -> None:
    user = make_user(linger=30)
    job = user.submit("survivor", LONG)
    user.wait_step(job, 20)
    user.kill()
    user.cluster.restart_slurmctld()
    user.hurry(job)
    spool = user.settings.spool_dir / "jobs" / job
    user.until(lambda: any(spool.glob("g*/*/done.json")), "the job has ended without a controller")
    assert user.state(job)["state"] == "running", "nobody has taken the result yet"
    user.start()
    check_right(user, job, undisturbed)
    assert len(user.accounted()) == 1, "the allocation was kept"
    check_no_double_admission(user)


def test_preempted_allocation_is_replaced_and_the_job_goes_on(make_user: MakeUser, undisturbed: bytes) -> None:
    user = make_user(linger=50, **{"slurm.partition": "spare"})
    job = user.submit("preempted", LONG)
    user.wait_step(job, 40)
    node = node_of(user, job)
    user.cluster.run("sbatch", "-p", "gpu", "-w", node, "--gpus-per-node=2", "-o", "/dev/null", "--wrap", "sleep 20")
    user.hurry(job)
    check_right(user, job, undisturbed)
    states = [states[0] for states in user.accounted().values()]
    assert len(states) == 2
    assert any("PREEMPTED" in state for state in states)
    check_no_double_admission(user)


def test_lost_node_costs_at_most_a_checkpoint_and_its_zombie_spoils_nothing(
    make_user: MakeUser, undisturbed: bytes
) -> None:
    user = make_user(linger=50)
    job = user.submit("moved", LONG)
    user.wait_step(job, 40)
    node = node_of(user, job)
    user.cluster.kill_node(node, jobs=False)  # the network is gone: its processes live on
    try:
        user.cluster.set_node(node, "down")
        user.hurry(job)
        check_right(user, job, undisturbed)
        states = sorted(states[0] for states in user.accounted().values())
        assert states == ["NODE_FAIL", "RUNNING"]
        check_no_double_admission(user)
    finally:
        user.cluster._kill_jobs(node)
        user.cluster.return_node(node)


def test_walltime_end_is_no_failure(make_user: MakeUser) -> None:
    """Two minutes of walltime for a job that takes longer: it is handed over before the end.

    Slurm may send its signal a minute early, so an allocation of less would have no time at all.
    """
    user = make_user(**{"slurm.walltime_s": 120, "slurm.signal_before_s": 10})
    job = user.submit_paced("long", iterations=500, step_s=0.2)
    (ended,) = user.wait(job)
    assert ended["state"] == "done"
    accounted = user.accounted()
    assert len(accounted) >= 2
    assert not any("TIMEOUT" in states[0] for states in accounted.values()), "agents leave before they are killed"
    reasons = [events[-1].get("reason") for events in user.journals().values() if events[-1]["event"] == "end"]
    assert {"walltime", "signal"} & set(reasons), "its own clock or Slurm's signal, whichever comes first"
    check_no_double_admission(user)


def test_without_placeholders_allocations_end_with_their_jobs(make_user: MakeUser) -> None:
    user = make_user(pool="none", idle_limit_s=300)
    jobs = [user.submit("first"), user.submit("second")]
    assert [job["state"] for job in user.wait(*jobs)] == ["exhausted"] * 2
    user.until(lambda: not user.queue(), "no allocation waits for the idle limit of five minutes")
    check_no_double_admission(user)


def test_scaled_by_hand_while_it_runs_the_prompt_stays_the_same(
    make_user: MakeUser, reference: tuple[bytes, float]
) -> None:
    """2 -> 1 -> 2 GPUs by `scale`. Both agents are there from the start, so no change waits for a cold one."""
    user = make_user(linger=5)
    job = user.submit("scaled", LONG, min_gpus=2, max_gpus=2)
    for before, after in ((2, 1), (1, 2)):
        user.until(lambda n=before: user.step(job, members=n) > 0, f"{job} makes steps with {before} members")
        user.cli("scale", job, str(after))
    user.until(lambda: user.step(job, members=2) > user.step(job, members=1), "steps with two members again")
    user.hurry(job)
    (ended,) = user.wait(job)
    assert (ended["state"], ended["step"]) == ("exhausted", LONG)
    shown = json.loads(user.cli("show", job, "--json"))
    assert [members for _, members in shown["history"]] == [2, 1, 2, 0]
    assert "GPUs over time" in user.cli("show", job)
    one, other = (load(prompt)["prompt_embeddings"] for prompt in (user.result(job), reference[0]))
    assert np.allclose(one, other, atol=1e-5, rtol=0), f"the prompt differs by {np.abs(one - other).max()}"
    assert user.loss(job) == pytest.approx(reference[1], abs=1e-5)
    assert len(user.accounted()) == 2, "the agent that was given back waited, and came again"
    check_no_double_admission(user)


def test_the_users_own_scancel_is_respected(make_user: MakeUser) -> None:
    user = make_user()
    job = user.submit_paced("endless", iterations=100_000, step_s=0.1, max_gpus=2)
    user.until(lambda: user.state(job)["state"] != "requested", f"{job} is known")
    user.cli("scale", job, "2")
    user.until(lambda: user.step(job, members=2) > 0, "steps with two members")
    user.cluster.run("scancel", "--name", user.queue()[0])
    user.until(lambda: any(kind == "allocation.scancelled" for kind, _ in user.events()), "it is said in events")
    (cause,) = [cause for kind, cause in user.events() if kind == "allocation.scancelled"]
    assert "not replaced" in cause
    at = user.step(job)
    user.until(lambda: user.step(job, members=1) > at + 20, "the other one goes on")
    assert user.state(job)["members"] == 1
    assert len(user.accounted()) == 2, "the cancelled one was not replaced"
    user.cli("cancel", job)


def test_an_agent_that_ended_while_nobody_ticked_is_charged_to_its_own_end(make_user: MakeUser) -> None:
    user = make_user(idle_limit_s=3)
    job = user.submit("short", iterations=20)
    user.until(lambda: user.step(job) > 0, "it runs")
    user.kill()
    user.until(lambda: not user.queue(), "its agent has ended itself")
    time.sleep(8)
    user.cli("tick")
    (charged,) = [seconds for _, seconds in user.held().values()]
    user.check_times()
    (source, exact) = next(iter(user.held().values()))
    assert source == "manager"
    assert abs(charged - exact) < 4, "the first tick already knew the end, by the agent's farewell or by Slurm"


@pytest.mark.skipif(os.environ.get("PROMPTTUNER_NESTED") == "1", reason="is this very run")
def test_everything_as_an_ordinary_user() -> None:
    """The first scenario on a cluster that belongs to an ordinary user, down to the controller and its agents."""
    prefix = as_ordinary_user()
    home = Path(tempfile.mkdtemp(prefix="ptuser-", dir="/tmp"))
    try:
        if prefix:
            shutil.chown(home, ORDINARY_USER)
        env = {**os.environ, "HOME": str(home), "PROMPTTUNER_NESTED": "1", "PYTHONDONTWRITEBYTECODE": "1",
               "TMPDIR": str(home), "USER": ORDINARY_USER, "LOGNAME": ORDINARY_USER}  # fmt: skip
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", f"--basetemp={home}/t",
             f"{__file__}::test_jobs_of_two_llms_share_warm_agents_and_nothing_is_left"],
            env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "1 passed" in done.stdout
    finally:
        time.sleep(0.5)
        shutil.rmtree(home, ignore_errors=True)
