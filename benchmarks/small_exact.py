"""Ours and simple rules beside the true optimum of small instances.

python benchmarks/small_exact.py [--quick] [--instances N] [--json] [--out FILE]

An instance: 8 jobs of one LLM within five minutes on 4 GPUs, 30 to 600 s of work, deadlines of U(0.5,1.5) times it,
no bank. Starts, pauses and resizes take a hundredth of a second: what is measured is the choice of jobs. The optimum
is the mixed-integer program of ``prompttuner/sim/bound.py`` (malleable and preemptive jobs, who is in time is a whole
number), solved by HiGHS; it knows all jobs beforehand, which no policy does. ``elasticflow-fixed`` decides in slots.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from prompttuner.policy import get
from prompttuner.profiles import stated
from prompttuner.sim import SimOptions, simulate
from prompttuner.sim.bound import bound
from prompttuner.trace.generate import LlmMix, Workload, generate
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple

GPUS = 4
JOBS = 8
LLM = "gpt2-large"
TINY_S = 0.01
POLICIES: dict[str, dict[str, object]] = {"prompttuner": {}, "elasticflow-fixed": {}, "edf": {"keep_s": 600.0}}


def instance(seed: int) -> list[TraceJob]:
    """One instance's jobs."""
    work = Workload(
        gpus=GPUS, load=1.6, length_s=300.0, burst_jobs=2.0, burst_spread_s=20.0, work_median_s=150.0,
        work_max_s=600.0, llms=(LlmMix(LLM, 1.0, 0.35),), slo=SloMultiple.parse("U(0.5,1.5)"), seed=seed,
    )  # fmt: skip
    return generate(work)[:JOBS]


def solve(seed: int) -> dict[str, int]:
    """Misses of the optimum and of each policy."""
    jobs = instance(seed)
    (profile,) = stated([LLM]).values()
    quick = replace(
        profile, queue_s=0.0, start_s=TINY_S, warm_s=TINY_S, resize_s=TINY_S, switch_s=TINY_S, lookup_s=TINY_S
    )
    limit = bound(jobs, GPUS, {LLM: quick.speedup}, bank=False, slots=64, mip_s=20.0)
    found = {"jobs": len(jobs), "optimum": limit.violations}
    options = SimOptions(gpus=GPUS, bank=False, tick_s=0.2, spool_s=TINY_S, seed=seed, horizon_s=1e6)
    for name, switches in POLICIES.items():
        found[name] = simulate(jobs, {LLM: quick}, get(name, **switches), options).violations
    return found


def main() -> None:
    """Print the sums; with --json one object as last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="five instances")
    parser.add_argument("--seed", type=int, default=0, help="first instance")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [solve(seed) for seed in range(options.seed, options.seed + (5 if options.quick else options.instances))]
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    out = {"command": " ".join(["python benchmarks/small_exact.py", *sys.argv[1:]]), "missed": total}
    for name, number in total.items():
        print(f"{name:20s} {number}")
    if options.out:
        options.out.write_text(json.dumps(out, indent=1) + "\n")
    if options.json:
        print(json.dumps(out))


if __name__ == "__main__":
    main()
