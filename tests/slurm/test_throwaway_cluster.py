"""The throw-away cluster itself: it assigns GPUs, accounts, and leaves nothing behind."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import Cluster
from slurm_fixtures import ORDINARY_USER, as_ordinary_user

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
SCRIPT = Path(slurm_cluster.__file__)


def _batch(cluster: Cluster, body: str, *options: str) -> str:
    return cluster.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", body).strip()


def _until(condition, timeout: float = 180.0) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_jobs_get_their_own_gpus_and_are_accounted(slurm: Cluster, tmp_path: Path) -> None:
    told = [tmp_path / str(index) for index in range(2)]
    wait = f"until [ -e {tmp_path}/over ]; do sleep 0.1; done"
    bodies = [f"echo $CUDA_VISIBLE_DEVICES $SLURMD_NODENAME > {path}; {wait}" for path in told]
    jobs = [_batch(slurm, body, "--gpus-per-node=1", "--nodelist=n1") for body in bodies]
    assert _until(lambda: all(path.exists() and path.read_text().endswith("\n") for path in told))
    assert sorted(path.read_text().split() for path in told) == [["0", "n1"], ["1", "n1"]]
    (tmp_path / "over").touch()

    def accounted() -> bool:
        rows = slurm.run("sacct", "-nXP", "-S", "now-1day", "-j", ",".join(jobs), "-o", "state").split()
        return rows == ["COMPLETED", "COMPLETED"]

    assert _until(accounted)


def test_controller_restart_keeps_jobs(slurm: Cluster) -> None:
    job = _batch(slurm, "sleep 300")
    slurm.restart_slurmctld()
    assert slurm.run("squeue", "-h", "-j", job, "-o", "%i").strip() == job


def test_killed_owner_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from slurm_cluster import running_cluster\n"
        "with running_cluster(nodes=1, accounting=False) as c:\n"
        "    c.run('sbatch', '--output=/dev/null', '--wrap', 'sleep 300')\n"
        "    print(c.prefix, flush=True); time.sleep(300)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(SCRIPT.parent)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    prefix = Path(owner.stdout.readline().strip())
    assert prefix.is_dir()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert _until(lambda: not prefix.exists())
    assert not slurm_cluster._marked(prefix)
    assert not slurm_cluster._job_pids(prefix)


def test_ordinary_user_starts_and_uses_it_through_the_command() -> None:
    user = ORDINARY_USER if os.geteuid() == 0 else getpass.getuser()
    prefix = Path(tempfile.mkdtemp(prefix="ptslurm-", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(prefix, user)
    command = [*as_ordinary_user(user), sys.executable, str(SCRIPT)]
    env = {**os.environ, "HOME": str(prefix), "USER": user, "LOGNAME": user, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        subprocess.run([*command, "start", str(prefix), "--nodes", "1"], check=True, env=env, timeout=400)
        done = subprocess.run(
            [*as_ordinary_user(user), "srun", "--gpus-per-node=1", "id", "-un"],
            env={**env, "SLURM_CONF": f"{prefix}/slurm.conf"}, cwd=prefix, check=True,
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert done.stdout.strip() == user
    finally:
        subprocess.run([*command, "stop", str(prefix)], check=True, env=env, timeout=180)
    assert not prefix.exists() or not any(prefix.iterdir())
    assert not slurm_cluster._marked(prefix)
    shutil.rmtree(prefix, ignore_errors=True)
