"""Fixtures: a real Slurm cluster for a whole test session, and its use by one test."""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from slurm_cluster import Cluster, missing_programs, running_cluster

__all__ = ["ORDINARY_USER", "as_ordinary_user", "bare_slurm", "bare_slurm_session", "slurm", "slurm_session"]

SETTLE_S = 10.0
"""For Slurm's books to be in order once all jobs have ended."""


def _need(accounting: bool) -> None:
    """Skip where Slurm is not installed (in CI a skipped test fails, see ``no_skips``)."""
    missing = missing_programs(accounting)
    if missing:
        pytest.skip(f"no Slurm on this host: {', '.join(missing)} not found")


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[Cluster]:
    """The session's cluster: four nodes, two GPUs each, accounting, a preemptable partition ``spare``."""
    _need(accounting=True)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_session: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The session's cluster for one test: clients aimed at it, all nodes idle before, no job left after."""
    yield from _use(slurm_session, monkeypatch)


@pytest.fixture(scope="session")
def bare_slurm_session() -> Iterator[Cluster]:
    """A second cluster: two nodes, no accounting."""
    _need(accounting=False)
    with running_cluster(nodes=2, accounting=False) as cluster:
        yield cluster


@pytest.fixture
def bare_slurm(bare_slurm_session: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster without accounting for one test: sacct answers nothing useful."""
    yield from _use(bare_slurm_session, monkeypatch)


def _use(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for key in [key for key in os.environ if key.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))]:
        monkeypatch.delenv(key)
    for key, value in cluster.env.items():
        monkeypatch.setenv(key, value)
    yield cluster
    clear(cluster)


def clear(cluster: Cluster, timeout: float = 180) -> None:
    """Cancel all jobs and wait until every node is idle again."""
    cluster.run("scancel", "--full", "--signal=KILL", "-u", cluster.shape.user, check=False)
    cluster.run("scancel", "-u", cluster.shape.user, check=False)
    deadline = time.monotonic() + timeout
    while cluster.run("squeue", "-h", "-o", "%i %T").strip() and time.monotonic() < deadline:
        time.sleep(0.1)
    cluster.wait_nodes("idle", cluster.shape.node_names, timeout)
    if not _gpus_come_free(cluster, SETTLE_S):
        # Slurm 22.05 may count GPUs as taken for ever when it was restarted while a node with jobs was lost.
        cluster.restart_slurmctld()
        cluster.wait_nodes("idle", cluster.shape.node_names, timeout)
        assert _gpus_come_free(cluster, timeout), "Slurm takes GPUs for allocated that no job has"


def _gpus_come_free(cluster: Cluster, timeout: float) -> bool:
    """Whether within so many seconds no node has anything allocated."""
    deadline = time.monotonic() + timeout
    while re.search(r"AllocTRES=\S", cluster.run("scontrol", "-o", "show", "nodes")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


ORDINARY_USER = "daemon"
"""An account that every system has. Not nobody: the slurmdbd of 26.05 refuses that one as its SlurmUser."""


def as_ordinary_user(user: str = ORDINARY_USER) -> list[str]:
    """Command prefix with which root runs a command as an ordinary user (empty when we are one already).

    Where this interpreter lies in a folder that only root may enter, the one capability to search folders is kept.
    """
    if os.geteuid() != 0:
        return []
    group = grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    prefix = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    ask = [sys.executable, "-c", "import sys; print(sys.base_prefix)"]
    plain = subprocess.run([*prefix, *ask], capture_output=True, text=True, check=False)
    if plain.stdout.strip() != sys.base_prefix:  # refused, or another interpreter stood in
        prefix += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    return prefix
