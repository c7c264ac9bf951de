"""From the cells of the policy comparison to its tables: pooled figures, ratios, intervals."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from typing import Any

import numpy as np
import policies_definitions as defs
import policies_models as models

Row = dict[str, Any]
BANK = {"paper": (True, False), "equal_bank": (True, True), "no_bank": (False, False)}
"""Table -> (ours has the bank, the baselines have it)."""
POLICIES = (defs.OURS, *defs.BASELINES)
EXACT = 6
"""With so few windows every resample of them is taken, instead of random ones."""


def summarise(rows: list[Row]) -> dict[str, Any]:
    """The JSON object: pooled tables, the headline's ratios with intervals, a table per window, and the rest.

    ``weaker`` holds the tables and ratios with the bank in the same form once more, with the weaker bank; ``models``
    those of the trace with real models, by GPUs.
    """
    limits = {_place(row): row for row in rows if row["policy"] == "bound"}
    cells = []
    for row in rows:
        if row["policy"] != "bound":
            limit = limits.get(_place(row), {}) if row["variant"] in ("", "ablation", "weaker") else {}
            cells.append({**row, **{k: limit.get(k) for k in ("unavoidable", "bound_cost", "bound_violations")}})
    here = [cell for cell in cells if cell["trace"] != models.TRACE]
    plain = [cell for cell in here if not cell["variant"]]
    weaker = [cell for cell in here if cell["variant"] == "weaker"]
    there = {_place(cell)[1:6] for cell in weaker}
    weaker += [cell for cell in plain if not cell["bank"] and _place(cell)[1:6] in there]
    gpus, slo = defs.HEADLINE
    return {
        "benchmark": "policies",
        "headline": {"gpus": gpus, "slo": slo},
        **_compared(plain, defs.TABLES),
        "windows": {table: _windows(plain, table, *defs.HEADLINE) for table in ("no_bank", "equal_bank")},
        "ablations": _ablations(here),
        "sensitivity": _sensitivity(here),
        "weaker": _compared(weaker, ("paper", "equal_bank")) if weaker else None,
        "models": _models([cell for cell in cells if cell["trace"] == models.TRACE]),
        "cells": cells,
        "cpu_s": round(sum(row["cpu_s"] for row in rows), 1),
    }


def _models(cells: list[Row]) -> dict[int, Row]:
    """By GPUs: pooled lines (ours ablated too), ratios with intervals, and the windows."""
    out: dict[int, Row] = {}
    for gpus in sorted({cell["gpus"] for cell in cells}, reverse=True):
        plain = [cell for cell in cells if cell["gpus"] == gpus and not cell["variant"]]
        lines = [_line(rows, name) for name in POLICIES if (rows := [c for c in plain if c["policy"] == name])]
        ablated = [cell for cell in cells if cell["gpus"] == gpus and cell["variant"]]
        for label in dict.fromkeys(cell["label"] for cell in ablated):
            lines.append(_line([cell for cell in ablated if cell["label"] == label], label))
        ours = _chosen(plain, defs.OURS, False, gpus, models.SLO)
        ratios = {}
        for name in (line["policy"] for line in lines if line["policy"] in defs.BASELINES):
            theirs = _chosen(plain, name, False, gpus, models.SLO)
            ratios[name] = {key: _ratios_of(theirs, ours, key) for key in ("violations", "cost")}
        windows = _windows(plain, "no_bank", gpus, models.SLO)
        seeds = len({cell["seed"] for cell in plain})
        out[gpus] = {"lines": lines, "ratios": ratios, "windows": windows, "seeds": seeds}
    return out


def _ratios_of(theirs: list[Row], ours: list[Row], key: str) -> Row:
    return {
        "ratio": _ratio(theirs, ours, key),
        "interval": _interval(theirs, ours, key),
        "without_one": _without_one(theirs, ours, key),
    }


def _windows(cells: list[Row], table: str, gpus: int, slo: str) -> list[Row]:
    """One line a window, seeds pooled: jobs, the bound, and what each policy misses."""
    out = []
    chosen = [cell for cell in cells if (cell["gpus"], cell["slo"]) == (gpus, slo)]
    for window in dict.fromkeys(cell["window"] for cell in chosen):
        mine = [cell for cell in chosen if cell["window"] == window]
        line: Row = {"window": window, "load": mine[0]["load"], "missed": {}}
        for name in POLICIES:
            rows = _chosen(mine, name, BANK[table][0 if name == defs.OURS else 1], gpus, slo)
            if rows:
                figures = _line(rows, name)
                line["missed"][name] = figures["violations"]
                if name == defs.OURS:
                    line |= {"jobs": figures["jobs"], "bound": figures.get("bound_violations")}
        out.append(line)
    return out


def _compared(cells: list[Row], tables: tuple[str, ...]) -> dict[str, Any]:
    """Pooled tables, and the headline's ratios with their intervals."""
    gpus, slo = defs.HEADLINE
    kinds = ("violations_ratio", "cost_ratio", "violations_ratio_95", "cost_ratio_95", "violations_ratio_without_one")
    out: dict[str, Any] = {kind: {} for kind in kinds}
    for table in tables:
        ours = _chosen(cells, defs.OURS, BANK[table][0], gpus, slo)
        for part in out.values():
            part[table] = {}
        for name in defs.BASELINES:
            theirs = _chosen(cells, name, BANK[table][1], gpus, slo)
            out["violations_ratio"][table][name] = _ratio(theirs, ours, "violations")
            out["violations_ratio_95"][table][name] = _interval(theirs, ours, "violations")
            out["violations_ratio_without_one"][table][name] = _without_one(theirs, ours, "violations")
            out["cost_ratio"][table][name] = _ratio(theirs, ours, "cost")
            out["cost_ratio_95"][table][name] = _interval(theirs, ours, "cost")
            if name.startswith("elasticflow"):
                out["cost_ratio"][table][name + " (whole cluster)"] = _ratio(theirs, ours, "cluster_cost")
    out["tables"] = {table: _table(cells, table) for table in tables}
    return out


def _place(row: Row) -> tuple[Any, ...]:
    place = (row["bank"], row["trace"], row["gpus"], row["slo"], row["window"], row["seed"])
    return (*place, row["variant"] == "weaker")


def _chosen(cells: list[Row], policy: str, bank: bool, gpus: int, slo: str) -> list[Row]:
    return [c for c in cells if (c["policy"], c["bank"], c["gpus"], c["slo"]) == (policy, bank, gpus, slo)]


def _sum(cells: list[Row], key: str) -> float:
    return float(sum(cell[key] for cell in cells))


def _ratio(theirs: list[Row], ours: list[Row], key: str) -> float | None:
    """Of sums; None where ours is below 1 (a ratio to nothing means nothing) or a side is missing."""
    below = _sum(ours, _ours_key(key))
    return round(_sum(theirs, key) / below, 3) if theirs and below >= 1 else None


def _ours_key(key: str) -> str:
    return "cost" if key == "cluster_cost" else key


def _by_window(theirs: list[Row], ours: list[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the seeds of each window that both have."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for side, (cells, name) in enumerate(((theirs, key), (ours, _ours_key(key)))):
        for cell in cells:
            sums[cell["window"]][side] += cell[name]
    both = {cell["window"] for cell in theirs} & {cell["window"] for cell in ours}
    pairs = np.array([sums[window] for window in sorted(both)]).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _interval(theirs: list[Row], ours: list[Row], key: str, draws: int = 2000) -> list[float] | None:
    """95% bootstrap interval of a ratio of sums, by resampling whole windows.

    Cells of one window are no independent draws, whatever the seed. With few windows all resamples are taken.
    """
    a, b = _by_window(theirs, ours, key)
    n = len(a)
    if n < 2:
        return None
    if n <= EXACT:
        pick = np.array(list(product(range(n), repeat=n)))
    else:
        pick = np.random.default_rng(9).integers(0, n, size=(draws, n))
    top, low = a[pick].sum(axis=1), b[pick].sum(axis=1)
    return [round(float(q), 2) for q in np.quantile(top / np.maximum(low, 1), (0.025, 0.975))]


def _without_one(theirs: list[Row], ours: list[Row], key: str) -> list[float] | None:
    """Least and greatest ratio when any one window is left out."""
    a, b = _by_window(theirs, ours, key)
    if len(a) < 2:
        return None
    ratios = (a.sum() - a) / np.maximum(b.sum() - b, 1)
    return [round(float(ratios.min()), 2), round(float(ratios.max()), 2)]


def _line(cells: list[Row], name: str) -> Row:
    jobs = _sum(cells, "jobs")
    missed = _sum(cells, "violations")
    line: Row = {
        "policy": name,
        "jobs": int(jobs),
        "violations": int(missed),
        "violations_pct": round(100 * missed / jobs, 2),
        "rejected": int(_sum(cells, "rejected")),
        "cost": round(_sum(cells, "cost")),
        "busy": round(_sum(cells, "busy")),
        "startup": round(_sum(cells, "startup")),
        "idle": round(_sum(cells, "idle")),
        "cluster_cost": round(_sum(cells, "cluster_cost")),
    }
    if all(cell.get("bound_cost") for cell in cells):
        bound = _sum(cells, "bound_violations")
        line["unavoidable"] = int(_sum(cells, "unavoidable"))
        line["bound_violations"] = int(bound)
        line["bound_violations_pct"] = round(100 * bound / jobs, 2)
        line["points_above_bound"] = round(100 * (missed - bound) / jobs, 2)
        line["bound_cost"] = round(_sum(cells, "bound_cost"))
        line["cost_over_bound"] = round(_sum(cells, "cost") / _sum(cells, "bound_cost"), 3)
    return line


def _table(cells: list[Row], table: str) -> list[Row]:
    out = []
    places = sorted({(c["gpus"], defs.SLOS.index(c["slo"])) for c in cells})
    for gpus, k in places:
        for name in (defs.OURS, *defs.BASELINES):
            chosen = _chosen(cells, name, BANK[table][0 if name == defs.OURS else 1], gpus, defs.SLOS[k])
            if chosen:
                out.append({"gpus": gpus, "slo": defs.SLOS[k], **_line(chosen, name)})
    return out


def _ablations(cells: list[Row]) -> list[Row]:
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    seeds = {c["seed"] for c in cells if c["variant"] == "ablation"}
    for cell in cells:
        plain = not cell["variant"] and cell["policy"] == defs.OURS and cell["gpus"] == 32 and cell["seed"] in seeds
        if plain:
            groups[cell["slo"], "as it is" if cell["bank"] else "no bank"].append(cell)
        elif cell["variant"] == "ablation":
            groups[cell["slo"], cell["label"]].append(cell)
    order = ("as it is", "no bank", *defs.ABLATIONS)
    keys = sorted(groups, key=lambda k: (defs.SLOS.index(k[0]), order.index(k[1])))
    return [{"slo": slo, **_line(groups[slo, label], label)} for slo, label in keys]


def _sensitivity(cells: list[Row]) -> list[Row]:
    groups: dict[tuple[str, str, bool], list[Row]] = defaultdict(list)
    for cell in cells:
        if cell["variant"] not in ("", "ablation", "weaker"):
            groups[cell["variant"], cell["policy"], cell["bank"]].append(cell)
    return [{"variant": v, "bank": bank, **_line(rows, p)} for (v, p, bank), rows in groups.items()]


def render(result: dict[str, Any]) -> str:
    """All tables as text."""
    out = _text(result, "")
    for title in ("ablations", "sensitivity"):
        if result[title]:
            out += ["", title]
            for row in result[title]:
                name = row.get("slo") or f"{row['variant']}, bank {row['bank']}"
                over = row.get("cost_over_bound", "")
                out.append(f"{name:>24} {row['policy']:18} {row['violations_pct']:6.2f}% {row['cost']:9d} {over}")
    if result["weaker"]:
        out += _text(result["weaker"], "weaker bank, ")
    out += _ratios(result["headline"], result, "")
    out += _ratios(result["headline"], result["weaker"], "weaker bank, ")
    for gpus, part in result["models"].items():
        out += ["", f"real models, {gpus} GPUs, no bank"]
        for row in part["lines"]:
            out.append(
                f"{row['policy']:18} {row['violations_pct']:6.2f}% {row['cost']:9d} {row.get('bound_violations', '')}"
            )
    return "\n".join(out)


def _text(part: dict[str, Any], prefix: str) -> list[str]:
    out: list[str] = []
    for table, lines in part["tables"].items():
        out += ["", f"{prefix}table {table}: ours {'with' if BANK[table][0] else 'without'} bank, "
                    f"baselines {'with' if BANK[table][1] else 'without'}"]  # fmt: skip
        out.append(
            f"{'GPUs':>4} {'S':>10} {'policy':18} {'missed':>7} {'%':>6} {'bound %':>8} {'unavoid.':>8} {'cost':>9} "
            f"{'/work':>6} {'busy':>9} {'start':>7} {'idle':>8} {'cluster':>9}"
        )
        for row in lines:
            out.append(
                f"{row['gpus']:4d} {row['slo']:>10} {row['policy']:18} {row['violations']:7d} "
                f"{row['violations_pct']:6.2f} {row.get('bound_violations_pct', float('nan')):8.2f} "
                f"{row.get('unavoidable', -1):8d} {row['cost']:9d} {row.get('cost_over_bound', float('nan')):6.3f} "
                f"{row['busy']:9d} {row['startup']:7d} {row['idle']:8d} {row['cluster_cost']:9d}"
            )
    return out


def _ratios(head: dict[str, Any], part: dict[str, Any] | None, prefix: str) -> list[str]:
    if part is None:
        return []
    where = f"{head['gpus']} GPUs, S = {head['slo']}"
    out = ["", f"{prefix}ratios at {where} (baseline / prompttuner, 95% interval by bootstrap)"]
    for table, ratios in part["violations_ratio"].items():
        for name, ratio in ratios.items():
            whole = part["cost_ratio"][table].get(name + " (whole cluster)")
            cost = f"cost {part['cost_ratio'][table][name]} {part['cost_ratio_95'][table][name]}"
            cost += f", whole cluster {whole}" if whole else ""
            out.append(f"{table:10} {name:18} violations {ratio} {part['violations_ratio_95'][table][name]}, {cost}")
    return out
