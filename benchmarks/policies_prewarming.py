"""What warming agents before expected bursts saves and costs: regular streams, and others that foretell nothing.

python benchmarks/policies_prewarming.py [--quick] [--json]

Generated streams of eight hours on 16 GPUs, S = U(0.5,1.5), stated profiles and bank; ``prompttuner`` as it is against
itself with ``prewarm=off``, five seeds pooled (``--quick``: one seed, four hours).
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from typing import Any

from prompttuner.policy import get
from prompttuner.policy.contract.plan import Plan, Policy, Request
from prompttuner.policy.contract.snapshot import Snapshot
from prompttuner.profiles import stated
from prompttuner.sim import SimOptions, simulate
from prompttuner.trace.generate import LlmMix, Workload, generate
from prompttuner.trace.slo import SloMultiple

GPUS, LENGTH_S = 16, 28800.0
ONE = (LlmMix("gpt2-large", 1.0, 0.35),)
STREAMS: dict[str, dict[str, Any]] = {
    "a sweep every 30 min": {"load": 0.05, "every_s": 1800.0, "burst_spread_s": 5.0, "llms": ONE},
    "the same, jobs spread over 30 s": {"load": 0.05, "every_s": 1800.0, "burst_spread_s": 30.0, "llms": ONE},
    "the same, three LLMs": {"load": 0.05, "every_s": 1800.0, "burst_spread_s": 5.0},
    "a sweep every 10 min": {"load": 0.1, "every_s": 600.0, "burst_spread_s": 5.0, "llms": ONE},
    "bursts at random times": {"load": 0.05, "burst_jobs": 8.0, "burst_spread_s": 5.0, "llms": ONE},
    "Poisson": {"load": 0.05, "burst_jobs": 1.0, "llms": ONE},
    "sparse Poisson": {"load": 0.005, "burst_jobs": 1.0, "llms": ONE},
}


class Counting:
    """A policy, and how many agents it asked for before their jobs had come."""

    def __init__(self, inner: Policy) -> None:
        self.inner, self.name, self.ahead = inner, inner.name, 0

    def plan(self, snapshot: Snapshot) -> Plan:
        plan = self.inner.plan(snapshot)
        self.ahead += sum(isinstance(action, Request) and action.job is None for action in plan.actions)
        return plan


def measure(stream: dict[str, Any], prewarm: bool, seeds: range, length_s: float) -> dict[str, float]:
    """Pooled over seeds: jobs, misses, GPU-seconds, agents asked for ahead."""
    total: Counter[str] = Counter()
    for seed in seeds:
        slo = SloMultiple.parse("U(0.5,1.5)")
        shape = {
            "gpus": GPUS,
            "length_s": length_s,
            "work_median_s": 60.0,
            "work_max_s": 300.0,
            "slo": slo,
            "seed": seed,
        }
        jobs = generate(Workload(**shape, **stream))
        policy = Counting(get("prompttuner", prewarm=prewarm))
        result = simulate(jobs, stated({job.llm for job in jobs}), policy, SimOptions(gpus=GPUS, seed=seed))
        total.update(jobs=len(jobs), missed=result.violations, ahead=policy.ahead, allocations=result.allocations)
        total.update(cost=round(result.cost_s), startup=round(result.startup_s), idle=round(result.idle_s))
    return dict(total)


def main() -> None:
    """Measure all streams, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seeds, length_s = (range(1, 2), LENGTH_S / 2) if options.quick else (range(1, 6), LENGTH_S)
    rows = {}
    print("| stream | jobs | asked ahead | missed, off | missed, on | 1000 GPU-s, off | 1000 GPU-s, on |")
    print("|---|---|---|---|---|---|---|")
    for name, stream in STREAMS.items():
        off, on = (measure(stream, prewarm, seeds, length_s) for prewarm in (False, True))
        rows[name] = {"off": off, "on": on}
        cells = (on["jobs"], on["ahead"], off["missed"], on["missed"], off["cost"] / 1000, on["cost"] / 1000)
        print(f"| {name} | " + " | ".join(f"{c:.1f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    if options.json:
        command = "python benchmarks/policies_prewarming.py --json"
        print(json.dumps({"benchmark": "policies_prewarming", "command": command, "seeds": len(seeds),
                          "quick": options.quick, "cores": os.cpu_count(), "streams": rows}))  # fmt: skip


if __name__ == "__main__":
    main()
