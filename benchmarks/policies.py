"""All policies against each other and against the limit, on bursty two-hour windows.

python benchmarks/policies.py [--quick] [--json] [--seeds N] [--full] [--jobs N] [--out FILE]
                              [--cache FILE [--check N]]

Definitions, windows and seeds: ``policies_definitions.py``. All cells are computed and written, none picked; the
figures are pooled over the report windows and seeds. ``--quick``: 32 GPUs, S = U(0.5,1.5), one seed, two windows.
With ``--json`` the last line is one object: ``cells`` (violations, unavoidable, cost, bound_cost, bound_violations of
each), ``violations_ratio`` and ``cost_ratio`` keyed by table and baseline, and more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import policies_definitions as defs
import policies_report as report

from prompttuner.policy import get
from prompttuner.policy.contract.snapshot import PoolProfile
from prompttuner.profiles import stated
from prompttuner.sim import SimOptions, simulate
from prompttuner.sim.bound import bound
from prompttuner.trace.generate import DEFAULT_MIX


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation (or, with ``policy`` "bound", one bound)."""

    policy: str
    label: str
    bank: bool
    gpus: int
    slo: str
    window: int
    load: float
    seed: int
    switches: tuple[tuple[str, object], ...] = ()
    variant: str = ""
    """"" or the name of a sensitivity run."""


@lru_cache(maxsize=1)
def _base() -> tuple[list[Any], str]:
    return defs.base_jobs()


def _profiles(variant: str) -> dict[str, PoolProfile]:
    known = stated([mix.llm for mix in DEFAULT_MIX])
    return {n: replace(p, speedup=defs.FLATTER) for n, p in known.items()} if variant == "flatter" else known


def run_cell(cell: Cell) -> dict[str, Any]:
    """Simulate (or bound) one cell; plain figures."""
    window = defs.Window(cell.window, cell.load)
    weaker = cell.variant == "weaker"
    jobs = defs.window_jobs(_base()[0], window, cell.gpus, cell.slo, cell.seed, weaker)
    profiles = _profiles(cell.variant)
    start = time.process_time()
    if cell.policy == "bound":
        limit = bound(jobs, cell.gpus, {n: p.speedup for n, p in profiles.items()}, bank=cell.bank, slots=100)
        figures: dict[str, Any] = {
            "unavoidable": limit.unavoidable,
            "bound_violations": limit.violations,
            "bound_cost": round(limit.work_gpu_s, 1),
        }
    else:
        prior = defs.bank_prior(weaker)
        spread = 0.2 if cell.variant == "uncertain" else 0.0
        options = SimOptions(
            gpus=cell.gpus, bank=cell.bank, bank_mid=prior[0], bank_hi=prior[1], predict_sigma=spread,
            start_sigma=spread, seed=cell.seed,
        )  # fmt: skip
        result = simulate(jobs, profiles, get(cell.policy, **dict(cell.switches)), options)
        figures = {
            "violations": result.violations,
            "rejected": sum(job.rejected for job in result.jobs),
            "cost": round(result.cost_s, 1),
            "busy": round(result.busy_s, 1),
            "startup": round(result.startup_s, 1),
            "idle": round(result.idle_s, 1),
            "cluster_cost": round(result.cluster_s, 1),
        }
    return {**asdict(cell), "jobs": len(jobs), **figures, "cpu_s": round(time.process_time() - start, 2)}


def cells_of(
    windows: Iterable[defs.Window], gpus: int, slo: str, seeds: Iterable[int], variant: str = ""
) -> list[Cell]:
    """Every policy with and without the bank, and both bounds; with the weaker bank, those with the bank."""
    out = []
    policies: dict[str, dict[str, object]] = {defs.OURS: {}, **defs.BASELINES}
    for window in windows:
        for seed in seeds:
            for bank in (True,) if variant == "weaker" else (True, False):
                where = {"bank": bank, "gpus": gpus, "slo": slo, "window": window.number, "load": window.load}
                where["variant"] = variant
                out.append(Cell("bound", "bound", seed=seed, **where))  # type: ignore[arg-type]
                for name, switches in policies.items():
                    chosen = tuple(sorted(switches.items()))
                    out.append(Cell(name, name, seed=seed, switches=chosen, **where))  # type: ignore[arg-type]
    return out


def extra_cells(windows: Iterable[defs.Window], seeds: Iterable[int], slos: Iterable[str]) -> list[Cell]:
    """Ablations of ours (with the bank, 32 GPUs), and the sensitivity runs at the headline."""
    out = []
    gpus, headline = defs.HEADLINE
    for window in windows:
        for seed in seeds:
            where = {"gpus": gpus, "window": window.number, "load": window.load, "seed": seed}
            for label, switches in defs.ABLATIONS.items():
                for slo in slos:
                    chosen = tuple(sorted(switches.items()))
                    out.append(Cell(defs.OURS, label, True, slo=slo, switches=chosen, variant="ablation", **where))  # type: ignore[arg-type]
            for variant in ("flatter", "uncertain"):
                for name in (defs.OURS, "infless", "elasticflow-fixed"):
                    for bank in (True, False):
                        out.append(Cell(name, name, bank, slo=headline, variant=variant, **where))  # type: ignore[arg-type]
            for bank in (True, False):
                chosen = (("lsth", True),)
                out.append(Cell("infless", "infless", bank, slo=headline, switches=chosen, variant="LSTH", **where))  # type: ignore[arg-type]
    return out


def plan_cells(quick: bool, seeds: int, full: bool) -> list[Cell]:
    """All cells of a run, the headline first."""
    if quick:
        return cells_of(defs.REPORT[:2], *defs.HEADLINE, seeds=defs.SEEDS[:1])

    def chosen(gpus: int, slo: str) -> tuple[int, ...]:
        return defs.SEEDS[: seeds if full else min(seeds, defs.SEEDS_AT.get((gpus, slo), 1))]

    extra = defs.SEEDS[: min(seeds, defs.EXTRA_SEEDS)]
    others = [slo for slo in defs.SLOS if slo != defs.HEADLINE[1]]
    cells = cells_of(defs.REPORT, *defs.HEADLINE, seeds=chosen(*defs.HEADLINE))
    for slo in others:
        cells += cells_of(defs.REPORT, 32, slo, chosen(32, slo))
    cells += extra_cells(defs.REPORT, extra, ("0.5", defs.HEADLINE[1]))
    cells += cells_of(defs.REPORT, *defs.HEADLINE, seeds=chosen(*defs.HEADLINE), variant="weaker")
    for slo in others:
        cells += cells_of(defs.REPORT, 32, slo, extra, "weaker")
    for slo in defs.SLOS:
        cells += cells_of(defs.REPORT, 96, slo, chosen(96, slo))
    return cells


def compute(cells: list[Cell], jobs: int, cache: Path | None, check: int = 0) -> list[dict[str, Any]]:
    """The rows of these cells in order; those in the cache (JSON lines, one a cell) are not computed again.

    But ``check`` of them, evenly spread, are, and compared: a change of the code since then must not go unnoticed.
    """
    done: dict[str, dict[str, Any]] = {}
    if cache is not None and cache.exists():
        for line in cache.read_text().splitlines():
            row = json.loads(line)
            done[row.pop("cell")] = row
    known = [cell for cell in dict.fromkeys(cells) if repr(cell) in done]
    missing = [cell for cell in dict.fromkeys(cells) if repr(cell) not in done]
    for cell in known[:: max(len(known) // check, 1)] if check else []:
        row = run_cell(cell)
        if any(done[repr(cell)][key] != row[key] for key in row if key not in ("cpu_s", "switches")):
            raise SystemExit(f"{cache} is of another version, delete it: {cell} now gives {row}")
    with ProcessPoolExecutor(jobs) as pool:
        for cell, row in zip(missing, pool.map(run_cell, missing), strict=True):
            done[repr(cell)] = row
            if cache is not None:
                with cache.open("a") as file:
                    file.write(json.dumps({"cell": repr(cell), **row}) + "\n")
    return [done[repr(cell)] for cell in cells]


def main() -> None:
    """Run all cells, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=len(defs.SEEDS), help="at most 5")
    parser.add_argument("--full", action="store_true", help="all seeds in every cell (about an hour of one core)")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--cache", type=Path, help="keep computed cells here, to go on after an interruption")
    parser.add_argument("--check", type=int, default=0, help="compute so many cached cells again and compare")
    parser.add_argument("--out", type=Path, help="write the JSON object here too")
    options = parser.parse_args()
    cells = plan_cells(options.quick, options.seeds, options.full)
    start = time.monotonic()
    rows = compute(cells, options.jobs, options.cache, options.check)
    result = report.summarise(rows, quick=options.quick)
    flags = [f"--{flag}" for flag in ("quick", "full", "json") if getattr(options, flag)]
    result["command"] = " ".join(["python benchmarks/policies.py", *flags])
    # cells kept by --cache that were computed again and found equal; cpu_s counts what this cache's runs computed
    result["checked"] = options.check
    result["cores"] = os.cpu_count()
    result["wall_s"] = None if options.cache else round(time.monotonic() - start, 1)
    result["workload"] = _base()[1]
    result["bank"] = "results/bank_pairs.csv" if defs.PAIRS.exists() else "stated distribution"
    print(report.render(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
