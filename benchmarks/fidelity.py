"""Does the simulator say what happens? A trace run live on a real Slurm cluster against its simulation.

The live run has the real controller, agents, leases, rendezvous and resizes; paced workers sleep where a GPU would
compute. A short run before it measures the site's start-up times, which the controller of the compared run then knows.

    python benchmarks/fidelity.py [--quick] [--seed N] [--json]

Needs the Slurm packages (tests/install_system_packages.sh).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from fidelity_runs import LiveRun, Site, alone_s, plain, profiles_with, run_live, simulated
from slurm_cluster import missing_programs, running_cluster

from prompttuner.policy.snapshot import PoolProfile
from prompttuner.profiles import stated
from prompttuner.sim import SimResult
from prompttuner.trace.generate import LlmMix, Workload, generate
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple

LLMS = (LlmMix("gpt2-base", 0.5, 0.2), LlmMix("gpt2-large", 0.5, 0.4))
WORKLOAD = Workload(
    gpus=6, load=0.5, length_s=270.0, burst_jobs=4.0, burst_spread_s=10.0, work_median_s=22.0, work_sigma=0.6,
    work_min_s=8.0, work_max_s=70.0, llms=LLMS, max_gpus=4, slo=SloMultiple(0.02, 3.0), seed=6,
)  # fmt: skip
"""Chosen by simulation alone, before any live run of it: enough late jobs, and few that turn on a second."""
QUICK = Workload(
    gpus=4, load=0.8, length_s=12.0, burst_jobs=3.0, burst_spread_s=3.0, work_median_s=5.0, work_min_s=3.0,
    work_max_s=8.0, llms=LLMS, max_gpus=2, slo=SloMultiple(0.5, 8.0), seed=6,
)  # fmt: skip


SCATTER = 0.2
"""Of start-up times (standard deviation of their logarithm), where the simulator is compared with itself."""
SCATTERED_RUNS = 20


def calibration(gpus: int) -> list[TraceJob]:
    """Jobs that come faster than they end: an allocation for each, both pools, and resizes as GPUs become free."""
    llms = [mix.llm for mix in LLMS]
    return [
        TraceJob(f"c{i}", 3.0 * i, llms[i % 2], 40 + 10 * i, 0.2, deadline_s=3.0 * i + 12 + 2 * i, max_gpus=2)
        for i in range(gpus)
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


def run(quick: bool, seed: int | None = None) -> dict[str, Any]:
    """Calibrate (not with ``quick``), run live, simulate, compare."""
    workload = QUICK if quick else WORKLOAD
    if seed is not None:
        workload = Workload(**{name: getattr(workload, name) for name in workload.__slots__} | {"seed": seed})
    trace, site = generate(workload), Site(gpus=workload.gpus)
    given = stated([mix.llm for mix in LLMS])
    with tempfile.TemporaryDirectory(prefix="ptfidel-") as folder, running_cluster() as cluster:
        before = None if quick else run_live(cluster, Path(folder) / "c", calibration(site.gpus), given, site)
        print(f"{len(trace)} jobs on {site.gpus} GPUs; measured beforehand: {before and _rounded(before.measured)}")
        live = run_live(cluster, Path(folder) / "r", trace, given, site, before.startups if before else ())
    profiles = profiles_with(live.measured, given)
    out: dict[str, Any] = {
        "benchmark": "fidelity",
        "command": "python benchmarks/fidelity.py" + " --quick" * quick + " --json",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),
        "seed": workload.seed,
        "site": plain(site),
        "profile_s": _rounded(live.measured),
        "samples": live.samples,
        "latest_submission_s": round(live.latest_s, 2),
        "late_even_alone": sum(job.submit_s + alone_s(job, profiles[job.llm]) > job.deadline_s for job in trace),
        "self_agreement": self_agreement(trace, profiles, site),
        **compare(trace, live, simulated(trace, profiles, site)),
    }
    if before is not None:
        foretold = compare(trace, live, simulated(trace, profiles_with(before.measured, given), site))
        kept = ("late_sim", "agreement", "gpu_s_sim", "gpu_s_ratio")
        out["beforehand"] = {"profile_s": _rounded(before.measured), **{key: foretold[key] for key in kept}}
    return out


def show(out: dict[str, Any]) -> None:
    print(f"{'':24}{'live':>12}{'simulated':>12}")
    print(f"{'jobs late':24}{out['late_live']:12}{out['late_sim']:12}   of {out['jobs']}")
    for kind, seconds in out["gpu_s_live"].items():
        print(f"{'GPU-s ' + kind:24}{seconds:12.1f}{out['gpu_s_sim'][kind]:12.1f}")
    for name in ("allocations", "resizes"):
        print(f"{name:24}{out[name][0]:12}{out[name][1]:12}")
    print(
        f"same verdict: {100 * out['agreement']:.1f}% of jobs; GPU-seconds simulated / live: {out['gpu_s_ratio']:.3f}"
    )
    print(f"the simulator with itself, start-ups scattered by {SCATTER:.0%}: {100 * out['self_agreement']:.1f}%")
    print(f"measured in the live run: {out['profile_s']}; {out['late_even_alone']} jobs late even alone")
    for one in out["disagreements"]:
        print(f"  {one['job']}: deadline after {one['slo_s']} s, behind it live {one['live_late_s']} s, "
              f"simulated {one['sim_late_s']} s")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few short jobs, within a minute")
    parser.add_argument("--seed", type=int, help="of the trace; default: the committed one")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    if missing := missing_programs():
        print(f"no Slurm on this host: {', '.join(missing)} not found", file=sys.stderr)
        return 2
    out = run(args.quick, args.seed)
    show(out)
    if args.json:
        print(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
