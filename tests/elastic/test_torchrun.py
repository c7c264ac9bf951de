"""Stock torchrun finds the rendezvous by its entry point, and takes members and ranks from a job's plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from prompttuner.protocol.jobs import Membership
from prompttuner.worker.membership import propose

SCRIPT = """
import json, os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
told = {key: os.environ[key] for key in ("PROMPTTUNER_GENERATION", "PROMPTTUNER_AGENT")}
with open(os.path.join(sys.argv[1], told["PROMPTTUNER_AGENT"] + ".out"), "w") as out:
    json.dump({"rank": dist.get_rank(), "world": dist.get_world_size(), "sum": total.item(), **told}, out)
dist.destroy_process_group()
"""


def test_stock_torchrun_meets_by_the_plan(tmp_path: Path) -> None:
    if not [point for point in entry_points(group="torchrun.handlers") if point.name == "prompttuner"]:
        pytest.fail("the installed package has no entry point: pip install it again")
    job = tmp_path / "job"
    job.mkdir()
    assert propose(job, Membership(5, ("b", "a")))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    agents = []
    for agent in ("a", "b"):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:4", "--nproc-per-node=1"]
        command += ["--rdzv-backend=prompttuner", "--rdzv-endpoint=none", "--rdzv-id=job"]
        command += ["--rdzv-conf", f"job_dir={job},agent={agent},address=127.0.0.1", str(script), str(tmp_path)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        agents.append(subprocess.Popen(command, stderr=subprocess.PIPE, env=env))
    try:
        for process in agents:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in agents:
            process.kill()
    found = {agent: json.loads((tmp_path / f"{agent}.out").read_text()) for agent in ("a", "b")}
    assert (found["b"]["rank"], found["a"]["rank"]) == (0, 1), "ranks are places in the plan"
    assert all(f["world"] == 2 and f["sum"] == 3.0 and f["PROMPTTUNER_GENERATION"] == "5" for f in found.values())


def test_torchrun_without_a_job_is_told_what_is_missing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("")
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=prompttuner", "--rdzv-endpoint=none"]
    done = subprocess.run([*command, "--nnodes=1:1", str(script)], capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and "--rdzv-conf job_dir=FOLDER,agent=ID" in done.stderr
