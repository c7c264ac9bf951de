"""Does the simulator say what happens? Traces run live on a real Slurm cluster against their simulation.

The live runs have the real controller, agents, leases, rendezvous and resizes; paced workers and models sleep where a
GPU would compute and load. A short run before them measures the site's start-up times: the simulator and the controller
know those, and nothing of the compared runs.

    python benchmarks/fidelity.py [--quick] [--seeds 1 2 ...] [--json]

Every run that is not --quick is appended to benchmarks/results/fidelity_runs.jsonl. Needs the Slurm packages
(tests/install_system_packages.sh).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

from fidelity_runs import LiveRun, Samples, Site, alone_s, plain, profiles_with, run_live, simulated
from slurm_cluster import Cluster, missing_programs, running_cluster

from prompttuner.policy.snapshot import PoolProfile
from prompttuner.profiles import stated
from prompttuner.sim import SimResult
from prompttuner.trace.generate import LlmMix, Workload, generate
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple

LLMS = (LlmMix("gpt2-base", 0.5, 0.2), LlmMix("gpt2-large", 0.5, 0.4))
WORKLOAD = Workload(
    gpus=16, load=0.45, length_s=330.0, burst_jobs=2.0, burst_spread_s=10.0, work_median_s=60.0, work_sigma=0.6,
    work_min_s=30.0, work_max_s=200.0, llms=LLMS, max_gpus=4, slo=SloMultiple(0.02, 2.5),
)  # fmt: skip
"""Chosen by simulation alone (docs/reference/fidelity.md), before any live run of it."""
LATE = (0.2, 0.8)
"""Share of late jobs, simulated with the stated profiles, within which a seed is taken."""
QUICK = Workload(
    gpus=4, load=0.8, length_s=12.0, burst_jobs=3.0, burst_spread_s=3.0, work_median_s=5.0, work_min_s=3.0,
    work_max_s=8.0, llms=LLMS, max_gpus=2, slo=SloMultiple(0.5, 8.0), seed=6,
)  # fmt: skip
RECORD = Path(__file__).parent / "results" / "fidelity_runs.jsonl"

SCATTER = 0.05
"""Of start-up times (standard deviation of their logarithm), where the simulator is compared with itself."""
SCATTERED_RUNS = 20


def trace_of(workload: Workload) -> list[TraceJob]:
    """The jobs; no Prompt Bank shortens them, live or simulated."""
    return [replace(job, bank_factor=1.0) for job in generate(workload)]


def qualifying(seed: int) -> bool:
    """Whether a seed's trace has neither too few nor too many late jobs, by the simulator and stated profiles alone."""
    trace, site = trace_of(replace(WORKLOAD, seed=seed)), Site(gpus=WORKLOAD.gpus)
    late = simulated(trace, stated([mix.llm for mix in LLMS]), site).violations
    return len(trace) >= 30 and LATE[0] <= late / len(trace) <= LATE[1]


def calibration(gpus: int) -> list[TraceJob]:
    """Jobs that come faster than they end: an allocation for each, both pools, and resizes as GPUs become free."""
    llms = [mix.llm for mix in LLMS]
    return [
        TraceJob(f"c{i}", 2.0 * i, llms[i % 2], 60 + 10 * i, 0.2, deadline_s=2.0 * i + 40 + 2 * i, max_gpus=2)
        for i in range(min(gpus, 8))
    ]


def self_agreement(trace: list[TraceJob], profiles: dict[str, PoolProfile], site: Site) -> float:
    """Share of verdicts that stay the same where start-ups are scattered: more agreement cannot be expected."""
    plain = {job.id: job.met for job in simulated(trace, profiles, site).jobs}
    same = 0
    for seed in range(SCATTERED_RUNS):
        other = simulated(trace, profiles, site, start_sigma=SCATTER, seed=seed)
        same += sum(plain[job.id] == job.met for job in other.jobs)
    return round(same / (SCATTERED_RUNS * len(trace)), 4)


def compare(trace: list[TraceJob], live: LiveRun, sim: SimResult) -> dict[str, Any]:
    """Verdicts and GPU-seconds of both, every job on which they differ, and lateness by job (live, simulated)."""
    expected = {job.id: job for job in sim.jobs}
    differ = [
        {
            "job": job.id,
            "slo_s": round(job.deadline_s - job.submit_s, 1),
            "live_late_s": _late(live.verdicts[job.id].end_s, job),
            "sim_late_s": _late(expected[job.id].end_s, job),
        }
        for job in trace
        if live.verdicts[job.id].met != expected[job.id].met
    ]
    simulated_cost = {"busy": sim.busy_s, "start-up": sim.startup_s, "warm-idle": sim.idle_s}
    total = sum(live.cost.values())
    gaps = [abs(live.verdicts[job.id].end_s - expected[job.id].end_s) for job in trace]
    return {
        "jobs": len(trace),
        "late_live": sum(not verdict.met for verdict in live.verdicts.values()),
        "late_sim": sum(not job.met for job in sim.jobs),
        "agreement": round(1 - len(differ) / len(trace), 4),
        "disagreements": differ,
        "late_s": {
            job.id: [_late(live.verdicts[job.id].end_s, job), _late(expected[job.id].end_s, job)] for job in trace
        },
        "end_gap_median_s": round(sorted(gaps)[len(gaps) // 2], 2),
        "gpu_s_live": {**_rounded(live.cost), "total": round(total, 1)},
        "gpu_s_sim": {**_rounded(simulated_cost), "total": round(sim.cost_s, 1)},
        "gpu_s_ratio": round(sim.cost_s / total, 4),
        "allocations": [live.allocations, sim.allocations],
        "resizes": [live.resizes, sum(job.resizes for job in sim.jobs)],
    }


def _late(end_s: float, job: TraceJob) -> float | None:
    """Seconds behind the deadline, negative before it; None where it did not end."""
    return round(end_s - job.deadline_s, 2) if math.isfinite(end_s) else None


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 2) for key, value in values.items()}


def _times(samples: Samples) -> dict[str, dict[str, float]]:
    """What was measured, by LLM and kind: mean, least and most seconds, and the number of samples."""
    return {
        f"{llm} {kind}": {"mean": round(fmean(s), 2), "min": round(min(s), 2), "max": round(max(s), 2), "n": len(s)}
        for (llm, kind), s in sorted(samples.items())
    }


def one_run(cluster: Cluster, folder: Path, workload: Workload, site: Site, before: LiveRun | None) -> dict[str, Any]:
    """One trace, live and simulated with the profile measured beforehand (with its own where there is none)."""
    trace, given = trace_of(workload), stated([mix.llm for mix in LLMS])
    began, load = time.strftime("%F %T", time.gmtime()), os.getloadavg()[0]
    live = run_live(cluster, folder / "home", trace, given, site, before.startups if before else ())
    (folder / "home").rename(folder / f"seed-{workload.seed}")
    own = profiles_with(live.measured, given)
    profiles = profiles_with(before.measured, given) if before else own
    out: dict[str, Any] = {
        "seed": workload.seed,
        "began": began,
        "load": [round(load, 1), *(round(value, 1) for value in os.getloadavg()[:2])],
        "measured_in_run_s": _times(live.measured),
        "latest_submission_s": round(live.latest_s, 2),
        "late_even_alone": sum(job.submit_s + alone_s(job, profiles[job.llm]) > job.deadline_s for job in trace),
        "self_agreement": self_agreement(trace, profiles, site),
        **compare(trace, live, simulated(trace, profiles, site)),
    }
    afterwards = compare(trace, live, simulated(trace, own, site))
    out["with_times_of_the_run"] = {key: afterwards[key] for key in ("late_sim", "agreement", "gpu_s_ratio")}
    return out


def pooled(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All runs as one."""
    jobs = sum(run["jobs"] for run in runs)
    differ = sum(len(run["disagreements"]) for run in runs)
    total = {key: sum(run[f"gpu_s_{key}"]["total"] for run in runs) for key in ("live", "sim")}
    return {
        "jobs": jobs,
        "late_live": sum(run["late_live"] for run in runs),
        "late_sim": sum(run["late_sim"] for run in runs),
        "agreement": round(1 - differ / jobs, 4),
        "gpu_s_ratio": round(total["sim"] / total["live"], 4),
    }


def run(quick: bool, seeds: list[int]) -> dict[str, Any]:
    """Calibrate (not with ``quick``), then run each seed's trace live, simulate it, compare."""
    site = Site(gpus=4, nodes=2) if quick else Site(gpus=WORKLOAD.gpus)
    given, before, runs = stated([mix.llm for mix in LLMS]), None, []
    shape = {"nodes": site.nodes, "gpus": site.gpus // site.nodes}
    with tempfile.TemporaryDirectory(prefix="ptfidel-") as name, running_cluster(**shape) as cluster:
        folder = Path(name)
        if not quick:
            before = run_live(cluster, folder / "home", calibration(site.gpus), given, site)
            (folder / "home").rename(folder / "calibration")  # the next run's pools are named by the same paths
            print(f"measured beforehand: {_times(before.measured)}", flush=True)
        for workload in [QUICK] if quick else [replace(WORKLOAD, seed=seed) for seed in seeds]:
            one = one_run(cluster, folder, workload, site, before)
            show(one)
            runs.append(one)
            if not quick:
                record = {key: one[key] for key in RECORDED} | {"cores": os.cpu_count(), "workload": repr(WORKLOAD)}
                with RECORD.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    return {
        "benchmark": "fidelity",
        "command": "python benchmarks/fidelity.py" + (" --quick" if quick else f" --seeds {_words(seeds)}") + " --json",
        "cores": os.cpu_count(),
        "site": plain(site),
        "measured_beforehand_s": _times(before.measured) if before else None,
        **pooled(runs),
        "runs": runs,
    }


RECORDED = ("seed", "began", "load", "jobs", "late_live", "late_sim", "agreement", "gpu_s_ratio", "self_agreement",
            "with_times_of_the_run", "disagreements")  # fmt: skip


def _words(seeds: list[int]) -> str:
    return " ".join(map(str, seeds))


def show(out: dict[str, Any]) -> None:
    print(f"seed {out['seed']:<19}{'live':>12}{'simulated':>12}")
    print(f"{'jobs late':24}{out['late_live']:12}{out['late_sim']:12}   of {out['jobs']}")
    for kind, seconds in out["gpu_s_live"].items():
        print(f"{'GPU-s ' + kind:24}{seconds:12.1f}{out['gpu_s_sim'][kind]:12.1f}")
    for name in ("allocations", "resizes"):
        print(f"{name:24}{out[name][0]:12}{out[name][1]:12}")
    print(
        f"same verdict: {100 * out['agreement']:.1f}% of jobs; GPU-seconds simulated / live: {out['gpu_s_ratio']:.3f}"
    )
    print(f"the simulator with itself, start-ups scattered by {SCATTER:.0%}: {100 * out['self_agreement']:.1f}%")
    print(f"with the times of this very run: {out['with_times_of_the_run']}; {out['late_even_alone']} late even alone")
    for one in out["disagreements"]:
        print(f"  {one['job']}: deadline after {one['slo_s']} s, behind it live {one['live_late_s']} s, "
              f"simulated {one['sim_late_s']} s", flush=True)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few short jobs, within a minute")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the traces; default: the first that qualifies")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    if missing := missing_programs():
        print(f"no Slurm on this host: {', '.join(missing)} not found", file=sys.stderr)
        return 2
    out = run(args.quick, args.seeds or [next(seed for seed in count(1) if qualifying(seed))])
    print(f"all runs: {pooled(out['runs'])}")
    if args.json:
        print(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
