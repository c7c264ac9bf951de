"""How fast planning and simulation are: 10,000 and 100,000 jobs on 1,000 GPUs, one live planning step, cluster01.

python benchmarks/sim_scale.py [--quick] [--json]

Figures are CPU seconds of this process (``time.process_time``): one core, whatever else the machine does. The targets:
100,000 jobs within 120 s; time for each job at most doubles from 10,000 to 100,000 jobs; one planning step with
10,000 jobs (9,000 waiting, 1,000 running) on 1,000 GPUs within 100 ms; cluster01 of the ElasticFlow traces (1,595
jobs, 512 GPUs; needs PROMPTTUNER_TRACES) within 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from elasticflow_original import simulate_elasticflow

from prompttuner.policy import get
from prompttuner.policy.contract.snapshot import (
    AgentPhase,
    Agents,
    Arrivals,
    JobPhase,
    Jobs,
    PoolProfile,
    SiteLimits,
    Snapshot,
)
from prompttuner.profiles import stated
from prompttuner.sim import SimOptions, simulate
from prompttuner.trace.generate import Workload, generate
from prompttuner.trace.importers.elasticflow import import_elasticflow, read_throughputs, speedups_of
from prompttuner.trace.slo import SloMultiple

GPUS = 1000
MIX = {"work_median_s": 120.0, "work_max_s": 900.0}
"""Jobs of about 140 one-GPU seconds in the mean: short, so that the planner is asked as often as possible."""


def workload(jobs: int, load: float = 0.6) -> Workload:
    """A bursty stream of about ``jobs`` jobs at this load."""
    base = Workload(gpus=GPUS, load=load, slo=SloMultiple.parse("U(0.5,1.5)"), seed=3, burst_jobs=16, **MIX)
    mean = sum(job.work_s for job in generate(base)) / len(generate(base))
    return replace(base, length_s=jobs * mean / (GPUS * load))


def time_simulation(jobs: int) -> dict[str, float]:
    """Jobs, CPU seconds, and violations of one simulation with the prompttuner policy."""
    trace = generate(workload(jobs))
    profiles = stated({job.llm for job in trace})
    start = time.process_time()
    result = simulate(trace, profiles, get("prompttuner"), SimOptions(gpus=GPUS))
    spent = time.process_time() - start
    return {"jobs": len(trace), "seconds": spent, "plans": result.plans, "violations": result.violations}


def live_snapshot(waiting: int = 9000, running: int = 1000) -> Snapshot:
    """10,000 jobs of three LLMs on 1,000 busy GPUs, a tenth of the running ones with more GPUs than they need."""
    rng = np.random.default_rng(8)
    n = waiting + running
    now = 10_000.0
    profiles: list[PoolProfile] = list(stated(["gpt2-base", "gpt2-large", "vicuna-7b"]).values())
    submit = now - rng.uniform(0, 600, n)
    work = rng.lognormal(5.5, 0.8, n)
    phase = np.where(np.arange(n) < running, JobPhase.RUNNING, JobPhase.WAITING)
    pool = rng.integers(0, 3, n)
    jobs = Jobs(
        id=[f"j{i}" for i in range(n)],
        pool=pool,
        phase=phase.astype(np.int64),
        submit=submit,
        deadline=submit + 600 + rng.uniform(1.0, 30.0, n) * work,
        priority=np.zeros(n, dtype=np.int64),
        min_gpus=np.ones(n, dtype=np.int64),
        max_gpus=np.full(n, 8, dtype=np.int64),
        step_s=np.full(n, 0.5),
        iters_mid=work / 0.5,
        iters_hi=1.2 * work / 0.5,
        bank_factor_mid=np.where(phase == JobPhase.WAITING, 0.5, 1.0),
        bank_factor_hi=np.where(phase == JobPhase.WAITING, 0.78, 1.0),
        phase_since=submit,
        best_effort=np.zeros(n, dtype=np.bool_),
        stop_on_miss=np.zeros(n, dtype=np.bool_),
    )
    owner = np.arange(GPUS) % running
    agents = Agents(
        id=[f"a{i}" for i in range(GPUS)],
        pool=pool[owner],
        phase=np.full(GPUS, int(AgentPhase.BUSY), dtype=np.int64),
        job=owner.astype(np.int64),
        gpus=np.ones(GPUS, dtype=np.int64),
        since=np.full(GPUS, now - 60),
        ready_at=np.full(GPUS, now - 60),
        ends_at=np.full(GPUS, np.inf),
    )
    times = [np.sort(submit[pool == p])[-256:] for p in range(3)]
    return Snapshot(now, jobs, agents, profiles, SiteLimits(gpus=GPUS), Arrivals(times=times))


def time_plan(repeats: int = 5) -> float:
    """Median milliseconds of one planning step."""
    snapshot, policy = live_snapshot(), get("prompttuner")
    policy.plan(snapshot)
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        policy.plan(snapshot)
        taken.append(1000 * (time.process_time() - start))
    return float(np.median(taken))


def time_cluster01() -> float | None:
    """CPU seconds of the elasticflow baseline on cluster01; None (and a line why) without the public traces."""
    folder = os.environ.get("PROMPTTUNER_TRACES", "")
    path = Path(folder) / "elasticflow" / "cluster01.csv"
    if not folder or not path.exists():
        print("cluster01 is left out: set PROMPTTUNER_TRACES to the folder of the public traces", file=sys.stderr)
        return None
    throughputs = read_throughputs(path.parent / "throughputs_A100")
    jobs = import_elasticflow(path, throughputs).require_clean().jobs
    start = time.process_time()
    simulate_elasticflow(jobs, 512, speedups_of(throughputs), slot_s=240.0, lazy=True)
    return time.process_time() - start


def main() -> None:
    """Print the table; with --json one object as last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 jobs and the planning step only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the JSON object here too")
    options = parser.parse_args()
    small = time_simulation(10_000)
    out: dict[str, object] = {
        "command": " ".join(["python benchmarks/sim_scale.py", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "plan_ms": round(time_plan(), 1),
        "jobs_per_s_10k": round(small["jobs"] / small["seconds"], 1),
        "seconds_10k": round(small["seconds"], 2),
    }
    if not options.quick:
        large = time_simulation(100_000)
        out["jobs_per_s_100k"] = round(large["jobs"] / large["seconds"], 1)
        out["seconds_100k"] = round(large["seconds"], 2)
        out["growth"] = round((large["seconds"] / large["jobs"]) / (small["seconds"] / small["jobs"]), 2)
        cluster = time_cluster01()
        out["cluster01_s"] = None if cluster is None else round(cluster, 2)
    for key, value in out.items():
        print(f"{key:18s} {value}")
    if options.out:
        options.out.write_text(json.dumps(out, indent=1) + "\n")
    if options.json:
        print(json.dumps(out))


if __name__ == "__main__":
    main()
