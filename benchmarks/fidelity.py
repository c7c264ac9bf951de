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
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

from fidelity_runs import LiveRun, Site, alone_s, plain, run_live, simulated
from fidelity_times import Samples, believed, profiles_with
from slurm_cluster import Cluster, missing_programs, running_cluster

from prompttuner.policy.contract.snapshot import PoolProfile
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
"""Of start-up times (standard deviation of their logarithm) in the simulations of one trace."""
SCATTERED_RUNS = 21
"""Simulations of one trace: what most of them say is expected, and how often the others differ is chance."""


def trace_of(workload: Workload) -> list[TraceJob]:
    """The jobs; no Prompt Bank shortens them, live or simulated."""
    return [replace(job, bank_factor=1.0) for job in generate(workload)]


def qualifying(seed: int) -> bool:
    """Whether a seed's trace has neither too few nor too many late jobs, by the simulator and stated profiles alone."""
    trace, site = trace_of(replace(WORKLOAD, seed=seed)), Site(gpus=WORKLOAD.gpus)
    late = simulated(trace, stated([mix.llm for mix in LLMS]), site).violations
    return len(trace) >= 30 and LATE[0] <= late / len(trace) <= LATE[1]


def calibration() -> list[TraceJob]:
    """Jobs for four allocations in which all that is measured occurs: starts, growth, shrinking, switches, releases.

    Each waits for what those before it leave; found by simulation.
    """
    base, large = (mix.llm for mix in LLMS)
    jobs = (
        (0.0, base, 16, 32, 1), (0.5, base, 16, 32, 1), (1.0, large, 16, 40, 1), (1.5, large, 16, 40, 1),
        (2.0, base, 60, 100, 4), (2.5, large, 50, 110, 4), (44.0, base, 8, 12, 1), (52.0, large, 20, 26, 1),
        (55.5, large, 10, 26, 1), (78.0, base, 12, 22, 1), (79.0, base, 26, 38, 1),
    )  # fmt: skip
    return [
        TraceJob(f"c{i}", at, llm, work / 0.2, 0.2, deadline_s=at + slo, max_gpus=most)
        for i, (at, llm, work, slo, most) in enumerate(jobs)
    ]


@dataclass(frozen=True, slots=True)
class Known:
    """What the simulator is told of the site, and what the live controller believed of it."""

    profiles: dict[str, PoolProfile]
    told: dict[str, PoolProfile]
    release_s: float

    @classmethod
    def of(cls, live: LiveRun, given: dict[str, PoolProfile]) -> Known:
        """As measured in a live run, and as its controller has learned it by its end."""
        releases = [fmean(values) for (_, kind), values in live.measured.items() if kind == "release"]
        release_s = fmean(releases) if releases else 0.0
        return cls(profiles_with(live.measured, given), believed(live.startups, given), release_s)

    def simulate(self, trace: list[TraceJob], site: Site, **scatter: Any) -> SimResult:
        return simulated(trace, self.profiles, site, told=self.told, release_s=self.release_s, **scatter)

    def scattered(self, trace: list[TraceJob], site: Site) -> list[SimResult]:
        return [self.simulate(trace, site, start_sigma=SCATTER, seed=seed) for seed in range(SCATTERED_RUNS)]


def compare(trace: list[TraceJob], live: LiveRun, sims: list[SimResult]) -> dict[str, Any]:
    """Verdicts and GPU-seconds of both, every job on which they differ, and lateness by job (live, simulated).

    Of several simulations (an odd number) the verdict of most counts, and their mean GPU-seconds.
    """
    ends = {job.id: sorted(sim.jobs[i].end_s for sim in sims)[len(sims) // 2] for i, job in enumerate(sims[0].jobs)}
    met = {job.id: ends[job.id] <= job.deadline_s for job in sims[0].jobs}
    differ = [
        {
            "job": job.id,
            "slo_s": round(job.deadline_s - job.submit_s, 1),
            "live_late_s": _late(live.verdicts[job.id].end_s, job),
            "sim_late_s": _late(ends[job.id], job),
            "sims_late": round(fmean(not one.met for sim in sims for one in sim.jobs if one.id == job.id), 2),
        }
        for job in trace
        if live.verdicts[job.id].met != met[job.id]
    ]
    costs = {
        "busy": fmean(sim.busy_s for sim in sims),
        "start-up": fmean(sim.startup_s for sim in sims),
        "warm-idle": fmean(sim.idle_s for sim in sims),
    }
    total, expected = sum(live.cost.values()), sum(costs.values())
    gaps = [abs(live.verdicts[job.id].end_s - ends[job.id]) for job in trace]
    return {
        "jobs": len(trace),
        "late_live": sum(not verdict.met for verdict in live.verdicts.values()),
        "late_sim": sum(not one for one in met.values()),
        "agreement": round(1 - len(differ) / len(trace), 4),
        "disagreements": differ,
        "late_s": {job.id: [_late(live.verdicts[job.id].end_s, job), _late(ends[job.id], job)] for job in trace},
        "end_gap_median_s": round(sorted(gaps)[len(gaps) // 2], 2),
        "gpu_s_live": {**_rounded(live.cost), "total": round(total, 1)},
        "gpu_s_sim": {**_rounded(costs), "total": round(expected, 1)},
        "gpu_s_sim_least_most": [round(of(sim.cost_s for sim in sims), 1) for of in (min, max)],
        "gpu_s_ratio": round(expected / total, 4),
        "allocations": [live.allocations, round(fmean(sim.allocations for sim in sims), 1)],
        "resizes": [live.resizes, round(fmean(sum(job.resizes for job in sim.jobs) for sim in sims), 1)],
    }


def chance(sims: list[SimResult]) -> float:
    """How often a simulation agrees with the verdict of most of them: more cannot be expected of a live run."""
    met = zip(*([job.met for job in sim.jobs] for sim in sims), strict=True)
    return round(fmean(max(sum(one), len(one) - sum(one)) / len(one) for one in met), 4)


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
    known = Known.of(before or live, given)
    sims = known.scattered(trace, site)
    out: dict[str, Any] = {
        "seed": workload.seed,
        "began": began,
        "load": [round(load, 1), *(round(value, 1) for value in os.getloadavg()[:2])],
        "measured_in_run_s": _times(live.measured),
        "latest_submission_s": round(live.latest_s, 2),
        "late_even_alone": sum(job.submit_s + alone_s(job, known.profiles[job.llm]) > job.deadline_s for job in trace),
        "self_agreement": chance(sims),
        **compare(trace, live, sims),
    }
    others = {
        "without_scatter": [known.simulate(trace, site)],
        "with_times_of_the_run": Known.of(live, given).scattered(trace, site),
    }
    return out | {name: _short(compare(trace, live, other)) for name, other in others.items()}


def _short(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("late_sim", "agreement", "gpu_s_ratio")}


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
            before = run_live(cluster, folder / "home", calibration(), given, site)
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
            "without_scatter", "with_times_of_the_run", "disagreements")  # fmt: skip


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
    print(f"one simulation with what most of them say: {100 * out['self_agreement']:.1f}%")
    print(f"a single one without scatter: {out['without_scatter']}; {out['late_even_alone']} jobs late even alone")
    print(f"with the times of this very run: {out['with_times_of_the_run']}")
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
