"""Our ElasticFlow against the figures its released simulator prints, and its speed on a large trace.

Needs the public traces (see docs/reference/traces.md) in the folder that PROMPTTUNER_TRACES names.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from elasticflow_original import simulate_elasticflow

from prompttuner.trace.importers.elasticflow import import_elasticflow, read_throughputs, speedups_of

PRINTED = {
    (64, False): (137, 7447),
    (128, False): (146, 9996),
    (256, False): (148, 13236),
    (512, False): (148, 15005),
    (64, True): (162, None),
    (128, True): (175, None),
    (512, True): (182, None),
}
"""(GPUs, fixed) -> (deadlines met, GPU-hours) of 195job.csv, slot 240 s, by the released simulator (fixed: with the
order of left-over GPUs turned and arrivals admitted one by one)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 and 128 GPUs only")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    folder = Path(os.environ.get("PROMPTTUNER_TRACES", "")) / "elasticflow"
    if not (folder / "195job.csv").exists():
        print("PROMPTTUNER_TRACES names no folder with elasticflow/195job.csv", file=sys.stderr)
        return 2
    throughputs = read_throughputs(folder / "throughputs_A100")
    speedups = speedups_of(throughputs)
    out: dict[str, object] = {"cores": os.cpu_count(), "command": "python benchmarks/elasticflow.py --json"}
    heads = ("195job.csv", "GPUs", "met", "printed", "diff %", "GPU-h", "printed", "diff %", "s")
    print("".join(f"{head:>{width}}" for head, width in zip(heads, (24, 6, 6, 9, 8, 8, 9, 8, 7), strict=True)))
    jobs = import_elasticflow(folder / "195job.csv", throughputs).require_clean().jobs
    for (gpus, fixed), (met, hours) in PRINTED.items():
        if args.quick and gpus > 128:
            continue
        begin = time.perf_counter()
        result = simulate_elasticflow(jobs, gpus, speedups, slot_s=240.0, fixed=fixed)
        took = time.perf_counter() - begin
        name = "elasticflow-fixed" if fixed else "elasticflow"
        own = result.gpu_s / 3600
        line = f"{name:24}{gpus:6}{len(result.met):6}{met:9}{100 * (len(result.met) / met - 1):8.1f}{own:8.0f}"
        print(line + (f"{hours:9}{100 * (own / hours - 1):8.1f}" if hours else f"{'-':>9}{'-':>8}") + f"{took:7.1f}")
        out[f"{name}_{gpus}"] = {
            "met": len(result.met),
            "printed_met": met,
            "gpu_h": round(own),
            "printed_gpu_h": hours,
        }
    if not args.quick:
        large = import_elasticflow(folder / "cluster01.csv", throughputs).require_clean().jobs
        begin = time.perf_counter()
        result = simulate_elasticflow(large, 512, speedups, slot_s=240.0, lazy=True)
        out["cluster01_s"] = round(time.perf_counter() - begin, 1)
        out["cluster01_met"] = len(result.met)
        print(f"cluster01.csv: {len(large)} jobs, 512 GPUs, {len(result.met)} met, {out['cluster01_s']} s")
    if args.json:
        print(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
