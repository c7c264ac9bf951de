"""Time to the first tuning step: a lease on a warm agent, a fresh submitit job, a cold worker in a held allocation.

All three tune the same job (shipped small model, same data, same first step) on the same throw-away Slurm cluster in
the same run, in turns. Time runs from the moment the work is asked for until the worker's own note of its first step.

``warm``: the lease is written into the spool of an agent that is idle and holds the model.
``fresh``: a new submitit job imports everything, loads the model and tunes; the cluster is idle, so its queue costs
next to nothing: scheduling is set to act at once.
``overlap``: ``srun --overlap`` starts such a worker inside an allocation that is held anyway.

    python benchmarks/warm_start.py [--quick] [--json]

Needs Slurm's Debian packages (see tests/support/slurm_cluster.py); any user.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from slurm_cluster import Cluster, running_cluster

from prompttuner import JobSpec
from prompttuner.config import Settings, load_settings
from prompttuner.files import make_private_dir, read_json, write_json
from prompttuner.protocol.agents import AgentSettings, AgentStatus, Order
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.jobs import Membership
from prompttuner.slurm.backend import AllocationRequest
from prompttuner.slurm.slurm_backend import SlurmBackend
from prompttuner.slurm.spool import Spool
from prompttuner.smallmodel import tasks
from prompttuner.spec import resolve

PATIENCE_S = 180.0
COLD = """
import sys
from pathlib import Path
from prompttuner.files import read_json
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.worker.lease import run_lease
from prompttuner.engine.llm.model import load_model
folder, agent = Path(sys.argv[1]), sys.argv[2]
model = load_model(read_json(folder / "spec.json")["model"])
end = run_lease(folder, agent=agent, generation=1, address="127.0.0.1", model=model,
                settings=ElasticSettings(interface="lo"))
sys.exit(0 if end.outcome == "done" else 1)
"""
"""A cold worker: what the zygote has done beforehand, then the very function that it runs for a lease."""


def fresh(folder: str, agent: str, code: str) -> None:
    """The function of the fresh submitit job."""
    sys.argv = ["fresh", folder, agent]
    exec(compile(code, "fresh", "exec"), {})


class Bench:
    """One cluster, one warm agent, and jobs for it and its rivals."""

    def __init__(self, cluster: Cluster, home: Path) -> None:
        self.cluster = cluster
        self.settings: Settings = load_settings(
            {"home": str(home), "backend": "slurm", "elastic.interface": "lo", "slurm.partition": "gpu"}, cwd=home
        )
        self.spool = Spool(self.settings.spool_dir).ensure()
        train, evaluation = tasks.write_dataset("reverse+upper", home / "data", train=128, evaluation=16)
        spec = JobSpec(
            model="small", train=train, eval=evaluation, target="loss<=0.000001", initial_prompt="vocab", batch_size=8,
            max_iterations=3, eval_every=3, max_gpus=1,
        )  # fmt: skip
        self.spec = resolve(spec, time.time()).to_json()
        self.backend = SlurmBackend(self.settings)
        self.agent = str(uuid.uuid4())
        self.order = Order(seq=1, owner=1)
        self.native = ""

    def hold_agent(self) -> None:
        """Submit the agent and wait until it is warm."""
        folder = make_private_dir(self.spool.agent(self.agent))
        chosen = AgentSettings(
            agent=self.agent, pool="bench", model=self.spec["model"],
            elastic=ElasticSettings(interface="lo"), jobs_dir=str(self.spool.jobs),
            walltime_s=3600, idle_limit_s=900,
        )  # fmt: skip
        write_json(folder / AgentSettings.FILE, chosen.to_json())
        write_json(folder / Order.FILE, self.order.to_json())
        self.native = self.backend.submit(AllocationRequest(self.agent, folder, "bench", 1, None, 3600))
        wait_for(lambda: self._status().get("state") == "warm", "the agent is warm")

    def job(self, member: str) -> Path:
        """A new job whose only member is ``member``."""
        folder = make_private_dir(self.spool.job("j" + uuid.uuid4().hex[:9]))
        write_json(folder / "spec.json", self.spec)
        write_json(folder / "plan.json", Membership(1, (member,), {member: "127.0.0.1"}).to_json())
        return folder

    def warm(self) -> float:
        folder = self.job(self.agent)
        self.order = replace(self.order, seq=self.order.seq + 1, job=folder.name, generation=1)
        began = time.time()
        write_json(self.spool.agent(self.agent) / Order.FILE, self.order.to_json())
        took = first_step(folder, self.agent) - began
        wait_for(lambda: self._status().get("state") == "warm", "the agent is warm again")
        return took

    def fresh(self) -> float:
        from submitit import SlurmExecutor

        folder = self.job("fresh")
        executor = SlurmExecutor(folder=str(self.settings.home / "fresh"))
        executor.update_parameters(
            time=10, gpus_per_node=1, partition="gpu", setup=["export OMP_NUM_THREADS=1"], job_name="fresh"
        )
        began = time.time()
        executor.submit(fresh, str(folder), "fresh", COLD)
        took = first_step(folder, "fresh") - began
        wait_for(lambda: "fresh" not in self.cluster.run("squeue", "-h", "-o", "%j").split(), "the fresh job is over")
        return took

    def overlap(self) -> float:
        folder = self.job("overlap")
        command = ["srun", "--overlap", f"--jobid={self.native}", "--ntasks=1", "--quiet", sys.executable, "-c", COLD]
        began = time.time()
        done = subprocess.run(
            [*command, str(folder), "overlap"], env={**self.cluster.env, "OMP_NUM_THREADS": "1"}, capture_output=True,
            text=True, check=False, stdin=subprocess.DEVNULL, timeout=PATIENCE_S,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{shlex.join(command[:6])} failed:\n{done.stderr[-2000:]}")
        return first_step(folder, "overlap") - began

    def _status(self) -> dict[str, Any]:
        return read_json(self.spool.agent(self.agent) / AgentStatus.FILE) or {}


def first_step(folder: Path, member: str) -> float:
    """Unix time of the first tuning step, as the worker noted it."""
    path = folder / "g1" / member / "progress.json"
    wait_for(lambda: bool((read_json(path) or {}).get("first_step_at")), f"first step of {member}")
    return float(read_json(path)["first_step_at"])


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.05)


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, in turns, so that the machine's other load falls on all alike."""
    with running_cluster(nodes=2, accounting=False) as cluster, tempfile.TemporaryDirectory(prefix="ptwarm-") as home:
        os.environ.update(cluster.env)
        bench = Bench(cluster, Path(home))
        bench.hold_agent()
        found: dict[str, list[float]] = {"warm": [], "fresh": [], "overlap": []}
        for _ in range(rounds):
            found["warm"].append(bench.warm())
            found["fresh"].append(bench.fresh())
            found["overlap"].append(bench.overlap())
        bench.backend.cancel([bench.native])
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round instead of five")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    found = measure(1 if options.quick else 5)
    median = {name: statistics.median(seconds) for name, seconds in found.items()}
    names = {
        "warm": "lease on a warm agent",
        "fresh": "fresh submitit job",
        "overlap": "srun --overlap, cold worker",
    }
    print(f"{'':30}{'median s':>10}{'min':>8}{'max':>8}{'against warm':>14}")
    for name, seconds in found.items():
        ratio = f"{median[name] / median['warm']:.1f}x"
        print(f"{names[name]:30}{median[name]:10.2f}{min(seconds):8.2f}{max(seconds):8.2f}{ratio:>14}")
    if options.json:
        print(
            json.dumps(
                {
                    "benchmark": "warm_start",
                    "command": "python benchmarks/warm_start.py" + (" --quick" if options.quick else "") + " --json",
                    "cores": os.cpu_count(),
                    "rounds": len(found["warm"]),
                    "warm_s": median["warm"],
                    "fresh_job_s": median["fresh"],
                    "overlap_s": median["overlap"],
                    "ratio": median["fresh"] / median["warm"],
                    "ratio_overlap": median["overlap"] / median["warm"],
                    "seconds": found,
                }
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
