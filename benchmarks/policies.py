"""All policies against each other and against the limit, on bursty two-hour windows of two traces.

python benchmarks/policies.py [--quick] [--full] [--baselines] [--ours] [--jobs N] [--cache FILE [--check N]] [--save]

Definitions, windows and seeds: ``policies_definitions.py`` and, for the trace with real models, ``policies_models.py``.
All cells are computed and written, none picked; figures are pooled over report windows and seeds. About 20 minutes of
one idle core. ``--full`` (all five seeds of the headline, other S, 96 GPUs, other assumptions) takes an hour,
``--quick`` (the headline, two windows, one seed) one minute.

``--cache`` goes on after an interruption; ``--baselines`` leaves out what our own policy decides, so that a change
of it costs only its own cells. ``--ours`` computes the headline of our own policy alone (four minutes), to see what
a change of it brings (with ``--save``: results/policies_ours.jsonl). ``--save`` else writes
``results/policies.csv`` (one line a cell) and ``results/policies.json`` (how it was made); then
``policies_tables.py`` makes the pages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import policies_definitions as defs
import policies_models as models
import policies_report as report
import policies_store as store
from policies_cells import Cell, Figures, run_cell

OURS = Path(__file__).parent / "results" / "policies_ours.jsonl"
Chosen = dict[str, dict[str, object]]
POLICIES: Chosen = {defs.OURS: {}, **defs.BASELINES}
HONEST: Chosen = {name: switches for name, switches in POLICIES.items() if name != "elasticflow"}
"""Without ElasticFlow as released, which ignores start-ups: it stands in the headline's tables alone."""


def _cells(where: dict[str, object], policies: Chosen, limit: bool = True) -> list[Cell]:
    """A cell for each policy (label -> switches; the label is the policy's name where it is one), and the bound."""
    out = [Cell("bound", "bound", **where)] if limit else []  # type: ignore[arg-type]
    for label, switches in policies.items():
        name = label if label in POLICIES else defs.OURS
        out.append(Cell(name, label, switches=tuple(sorted(switches.items())), **where))  # type: ignore[arg-type]
    return out


def cells_of(gpus: int, slo: str, seeds: Iterable[int], variant: str = "", count: int = 5) -> list[Cell]:
    """Every policy with and without the bank, and both bounds; with the weaker bank, those with the bank."""
    out = []
    policies = POLICIES if (gpus, slo) == defs.HEADLINE else HONEST
    for window in defs.REPORT[:count]:
        for seed in seeds:
            for bank in (True,) if variant == "weaker" else (True, False):
                where = {"bank": bank, "gpus": gpus, "slo": slo, "window": window.number, "load": window.load}
                out += _cells({**where, "seed": seed, "variant": variant}, policies)
    return out


def wrong_cells(seeds: Iterable[int]) -> list[Cell]:
    """The headline with priors that are wrong."""
    out = []
    gpus, slo = defs.HEADLINE
    few = {name: POLICIES[name] for name in (defs.OURS, "infless", "elasticflow-fixed", "edf")}
    for variant, wrong in defs.WRONG.items():
        for window in defs.REPORT:
            for seed in seeds:
                where = {"bank": wrong.bank_factor is not None, "gpus": gpus, "slo": slo, "window": window.number}
                out += _cells({**where, "load": window.load, "seed": seed, "variant": variant}, few, limit=False)
    return out


def extra_cells(seeds: Iterable[int], full: bool) -> list[Cell]:
    """At 32 GPUs: ablations of ours, and (``full``) other assumptions."""
    out = []
    gpus, headline = defs.HEADLINE
    few = {name: POLICIES[name] for name in (defs.OURS, "infless", "elasticflow-fixed")}
    for window in defs.REPORT:
        for seed in seeds:
            where: dict[str, object] = {"gpus": gpus, "window": window.number, "load": window.load, "seed": seed}
            at = {**where, "slo": headline}
            for bank in (True, False):
                out += _cells({**at, "bank": bank, "variant": "ablation"}, defs.ABLATIONS, limit=False)
                if not full:
                    continue
                for variant in ("flatter", "uncertain"):
                    out += _cells({**at, "bank": bank, "variant": variant}, few, limit=False)
                out += _cells({**at, "bank": bank, "variant": "LSTH"}, {"infless": {"lsth": True}}, limit=False)
    return out


def models_cells(seeds: Iterable[int]) -> list[Cell]:
    """The trace with real models, without a bank: all policies, and ours without switching or keep-alive."""
    out = []
    for gpus in models.GPUS:
        for number, load in models.busiest(gpus):
            for seed in seeds:
                where = {"bank": False, "gpus": gpus, "slo": models.SLO, "window": number, "load": load, "seed": seed}
                out += _cells({**where, "trace": models.TRACE}, HONEST)
                ablated = {label: defs.ABLATIONS[label] for label in ("no model switch", "no warm pool")}
                out += _cells({**where, "trace": models.TRACE, "variant": "ablation"}, ablated, limit=False)
    return out


def plan_cells(quick: bool, full: bool) -> list[Cell]:
    """All cells of a run, the headlines first."""
    if quick:
        return cells_of(*defs.HEADLINE, seeds=defs.SEEDS[:1], count=2)
    seeds = defs.SEEDS if full else defs.SEEDS[: defs.HEADLINE_SEEDS]
    one = defs.SEEDS[: defs.EXTRA_SEEDS]
    cells = cells_of(*defs.HEADLINE, seeds=seeds)
    cells += models_cells(one) if models.available() else []
    cells += wrong_cells(one)
    cells += cells_of(*defs.HEADLINE, seeds=one, variant="weaker")
    cells += extra_cells(one, full)
    for gpus, slo in ((gpus, slo) for gpus in defs.GPUS for slo in defs.SLOS):
        if (gpus, slo) != defs.HEADLINE and full:
            cells += cells_of(gpus, slo, one)
    return cells


def compute(cells: list[Cell], jobs: int, cache: Path | None, check: int = 0) -> list[Figures]:
    """The rows of these cells in order; those in the cache (JSON lines, one a cell) are not computed again.

    But ``check`` of them, evenly spread, are, and compared: a change of the code since then must not go unnoticed.
    """
    done: dict[str, Figures] = {}
    if cache is not None and cache.exists():
        for line in cache.read_text().splitlines():
            row = json.loads(line)
            done[row.pop("cell")] = row
    known = [cell for cell in dict.fromkeys(cells) if repr(cell) in done]
    missing = [cell for cell in dict.fromkeys(cells) if repr(cell) not in done]
    for cell in known[:: max(len(known) // check, 1)] if check else []:
        row = run_cell(cell)
        if any(done[repr(cell)][key] != row[key] for key in row if key != "cpu_s"):
            raise SystemExit(f"{cache} is of another version, delete it: {cell} now gives {row}")
    with ProcessPoolExecutor(jobs) as pool:
        for cell, row in zip(missing, pool.map(run_cell, missing), strict=True):
            done[repr(cell)] = row
            if cache is not None:
                with cache.open("a") as file:
                    file.write(json.dumps({"cell": repr(cell), **row}) + "\n")
    return [done[repr(cell)] for cell in cells]


def _commit() -> str:
    """Of the last change to what decides: our policy, the baselines, the simulator."""
    git = ["git", "-C", str(Path(__file__).parent.parent), "log", "-1", "--format=%h", "--"]
    done = subprocess.run([*git, "prompttuner/policy", "prompttuner/sim"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def own_headline(jobs: int, cache: Path | None, save: bool) -> None:
    """The headline of our own policy, with and without the bank, window by window; ``save``: a line a cell in OURS."""
    cells = cells_of(*defs.HEADLINE, seeds=defs.SEEDS[: defs.HEADLINE_SEEDS])
    rows = compute([cell for cell in cells if cell.policy == defs.OURS], jobs, cache)
    for bank in (False, True):
        some = [row for row in rows if row["bank"] == bank]
        missed, total = (sum(int(row[name]) for row in some) for name in ("violations", "jobs"))
        cost = sum(float(row["cost"]) for row in some) / total
        print(
            f"{'with' if bank else 'no'} bank: {missed} of {total} missed, {missed / total:.2%}; {cost:.0f} GPU-s a job"
        )
        for window in defs.REPORT:
            there = [int(row["violations"]) for row in some if row["window"] == window.number]
            print(f"  window {window.number}: {sum(there)} missed")
    if save:
        OURS.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Run all cells, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--baselines", action="store_true", help="bounds and baselines alone (for --cache)")
    parser.add_argument("--ours", action="store_true", help="the headline's cells of our own policy alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--cache", type=Path, help="keep computed cells here, to go on after an interruption")
    parser.add_argument("--check", type=int, default=0, help="compute so many cached cells again and compare")
    parser.add_argument("--save", action="store_true", help="write results/policies.csv and policies.json")
    parser.add_argument("--json", action="store_true", help="print the summary as one object on the last line")
    options = parser.parse_args()
    if options.ours:
        own_headline(options.jobs, options.cache, options.save)
        return
    cells = plan_cells(options.quick, options.full)
    if options.baselines:
        cells = [cell for cell in cells if cell.policy != defs.OURS]
    start = time.monotonic()
    rows = compute(cells, options.jobs, options.cache, options.check)
    if options.baselines:
        print(f"{len(rows)} cells, {sum(float(row['cpu_s']) for row in rows):.0f} CPU seconds")
        return
    flags = [f"--{flag}" for flag in ("quick", "full") if getattr(options, flag)]
    made = store.Made(
        command=" ".join(["python benchmarks/policies.py", *flags]),
        policy=_commit(),
        date=datetime.now(UTC).date().isoformat(),
        cores=os.cpu_count() or 1,
        load_average=round(os.getloadavg()[2], 1),
        wall_s=None if options.cache else round(time.monotonic() - start, 1),
        cpu_s=round(sum(float(row["cpu_s"]) for row in rows)),
        checked=options.check,
        workload=defs.base_jobs()[1],
        bank="results/bank_pairs.csv" if defs.PAIRS.exists() else "stated distribution",
    )
    if options.save:
        store.save(rows, made)
    result = report.summarise(rows)
    print(report.render(result))
    if options.json:
        print(json.dumps({**result, **made.as_dict()}))


if __name__ == "__main__":
    main()
