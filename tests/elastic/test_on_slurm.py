"""The same on a real Slurm cluster: members in allocations of their own, one of whose nodes dies."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_job import Job, check_journal, wait_for
from safetensors.torch import load_file
from slurm_cluster import Cluster

from prompttuner.engine.llm.model import load_model
from prompttuner.engine.solo import run_solo
from prompttuner.protocol.elastic import ElasticSettings

STEPS = 120
SETTINGS = ElasticSettings(loss_timeout_s=30, grace_s=4, join_timeout_s=120, poll_s=0.05)


class AllocatedJob(Job):
    """Plans are written here; the leases are run by holders in Slurm allocations."""

    def lease(self, agent: str, generation: int) -> int:
        return 0

    def submit(self, cluster: Cluster, agent: str) -> None:
        holder = Path(__file__).parents[1] / "support" / "lease_holder.py"
        command = shlex.join(
            ["env", f"PROMPTTUNER_ELASTIC={SETTINGS.to_env()['PROMPTTUNER_ELASTIC']}", "OMP_NUM_THREADS=1"]
        )
        command += " " + shlex.join([sys.executable, str(holder), str(self.dir), agent])
        log = self.dir / f"log-{agent}.txt"
        options = [
            "--parsable",
            "--no-requeue",
            "--exclusive",
            "-N1",
            "-n1",
            "-J",
            agent,
            "-o",
            str(log),
            "-e",
            str(log),
        ]
        cluster.run("sbatch", *options, "--wrap", command)

    def over(self, agent: str) -> bool:
        path = self.dir / f"ends-{agent}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return any(json.loads(line)[0] == "done" for line in lines)


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_members_in_allocations_grow_lose_a_node_shrink_and_end_with_the_same_prompt(
    slurm: Cluster, tmp_path: Path, make_job_spec: Callable[..., dict[str, Any]]
) -> None:
    spec = make_job_spec(max_iterations=STEPS)
    torch.set_num_threads(1)
    alone = run_solo(spec, tmp_path / "alone", loaded=load_model(spec["model"]))
    job = AllocatedJob(tmp_path / "job", spec, settings=SETTINGS)
    for agent in "abcd":
        job.submit(slurm, agent)
    for agent in "abcd":
        wait_for(lambda agent=agent: (job.dir / f"ready-{agent}").exists(), f"agent {agent} in its allocation", 240)
    nodes = dict(line.split() for line in slurm.run("squeue", "-h", "-o", "%j %N").splitlines())
    assert len(set(nodes.values())) == 4, "each member on a node of its own"
    for members in (["a"], ["a", "b"], ["a", "b", "c", "d"]):
        job.assign(members)
        job.wait_step(3, members)
    slurm.kill_node(nodes["a"])  # rank 0, with the store
    try:
        job.wait_step(3, ["b", "c", "d"])
        assert job.plan is not None and job.plan.by in {"b", "c", "d"}, "no controller was needed"
        job.assign(["d"])
        job.release()
        wait_for(lambda: job.over("d"), "the end of the job", 240)
    finally:
        (job.dir / "over").write_text("")
        slurm.return_node(nodes["a"])
    _, done, folder = job.result()
    assert done["step"] == STEPS
    reference = load_file(tmp_path / "alone" / "result" / "adapter_model.safetensors")["prompt_embeddings"]
    found = load_file(folder / "result" / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.allclose(found, reference, atol=1e-4, rtol=0)
    assert sum(check_journal(job, STEPS, alone.sample_ids).values()) <= 1
