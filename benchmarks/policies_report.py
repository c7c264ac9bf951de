"""From the cells of the policy comparison to its tables: pooled figures, ratios, intervals."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import policies_definitions as defs

Row = dict[str, Any]
BANK = {"paper": (True, False), "equal_bank": (True, True), "no_bank": (False, False)}
"""Table -> (ours has the bank, the baselines have it)."""
KEEP = (
    "policy", "label", "variant", "bank", "gpus", "slo", "window", "seed", "jobs", "violations", "rejected",
    "unavoidable", "cost", "busy", "startup", "idle", "cluster_cost", "bound_cost", "bound_violations",
)  # fmt: skip


def summarise(rows: list[Row], quick: bool) -> dict[str, Any]:
    """The JSON object: all cells joined with their bounds, pooled tables, and the headline ratios.

    ``weaker`` holds the tables and ratios with the bank in the same form once more, with the weaker bank.
    """
    limits = {_place(row): row for row in rows if row["policy"] == "bound"}
    cells = []
    for row in rows:
        if row["policy"] != "bound":
            limit = limits.get(_place(row), {}) if row["variant"] in ("", "ablation", "weaker") else {}
            cells.append({**row, **{k: limit.get(k) for k in ("unavoidable", "bound_cost", "bound_violations")}})
    plain = [cell for cell in cells if not cell["variant"]]
    weaker = [cell for cell in cells if cell["variant"] == "weaker"]
    there = {_place(cell)[1:5] for cell in weaker}
    weaker += [cell for cell in plain if not cell["bank"] and _place(cell)[1:5] in there]
    gpus, slo = defs.HEADLINE
    return {
        "benchmark": "policies",
        "quick": quick,
        "headline": {"gpus": gpus, "slo": slo},
        **_compared(plain, defs.TABLES),
        "ablations": _ablations(cells),
        "sensitivity": _sensitivity(cells),
        "weaker": _compared(weaker, ("paper", "equal_bank")) if weaker else None,
        "cells": [{key: cell[key] for key in KEEP} for cell in cells],
        "cpu_s": round(sum(row["cpu_s"] for row in rows), 1),
    }


def _compared(cells: list[Row], tables: tuple[str, ...]) -> dict[str, Any]:
    """Pooled tables, and the headline's ratios with their intervals."""
    gpus, slo = defs.HEADLINE
    out: dict[str, Any] = {"violations_ratio": {}, "cost_ratio": {}, "violations_ratio_95": {}, "cost_ratio_95": {}}
    for table in tables:
        ours = _chosen(cells, defs.OURS, BANK[table][0], gpus, slo)
        for part in out.values():
            part[table] = {}
        for name in defs.BASELINES:
            theirs = _chosen(cells, name, BANK[table][1], gpus, slo)
            out["violations_ratio"][table][name] = _ratio(theirs, ours, "violations")
            out["violations_ratio_95"][table][name] = _interval(theirs, ours, "violations")
            out["cost_ratio"][table][name] = _ratio(theirs, ours, _cost_key(name))
            out["cost_ratio_95"][table][name] = _interval(theirs, ours, _cost_key(name))
            if name.startswith("elasticflow"):
                out["cost_ratio"][table][name + " (held)"] = _ratio(theirs, ours, "busy")
    out["tables"] = {table: _table(cells, table) for table in tables}
    return out


def _place(row: Row) -> tuple[Any, ...]:
    return (row["bank"], row["gpus"], row["slo"], row["window"], row["seed"], row["variant"] == "weaker")


def _cost_key(name: str) -> str:
    """ElasticFlow owns its cluster: its cost is the whole of it; the share really held is shown beside."""
    return "cluster_cost" if name.startswith("elasticflow") else "cost"


def _chosen(cells: list[Row], policy: str, bank: bool, gpus: int, slo: str) -> list[Row]:
    return [c for c in cells if (c["policy"], c["bank"], c["gpus"], c["slo"]) == (policy, bank, gpus, slo)]


def _sum(cells: list[Row], key: str) -> float:
    return float(sum(cell[key] for cell in cells))


def _ratio(theirs: list[Row], ours: list[Row], key: str) -> float | None:
    """Of sums; None where ours is below 1 (a ratio to nothing means nothing) or a side is missing."""
    ours_key = "cost" if key in ("cluster_cost", "busy") else key
    below = _sum(ours, ours_key)
    return round(_sum(theirs, key) / below, 3) if theirs and below >= 1 else None


def _interval(theirs: list[Row], ours: list[Row], key: str, draws: int = 2000) -> list[float] | None:
    """95% bootstrap interval of a ratio of sums over (window, seed) pairs, seeded."""
    ours_key = "cost" if key == "cluster_cost" else key
    a = {(c["window"], c["seed"]): c[key] for c in theirs}
    b = {(c["window"], c["seed"]): c[ours_key] for c in ours}
    keys = sorted(set(a) & set(b))
    if not keys:
        return None
    pick = np.random.default_rng(9).integers(0, len(keys), size=(draws, len(keys)))
    top = np.array([a[k] for k in keys])[pick].sum(axis=1)
    low = np.array([b[k] for k in keys])[pick].sum(axis=1)
    return [round(float(q), 2) for q in np.quantile(top / np.maximum(low, 1), (0.025, 0.975))]


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
    return [{"variant": v, "bank": bank, **_line(rows, p)} for (v, p, bank), rows in sorted(groups.items())]


def render(result: dict[str, Any]) -> str:
    """All tables as text."""
    out = [f"workload: {result['workload']}; bank: {result['bank']}; {result['wall_s']} s on {result['cores']} cores"]
    out += _text(result, "")
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
            held = part["cost_ratio"][table].get(name + " (held)")
            cost = f"cost {part['cost_ratio'][table][name]} {part['cost_ratio_95'][table][name]}"
            cost += f", GPU-seconds held {held}" if held else ""
            out.append(f"{table:10} {name:18} violations {ratio} {part['violations_ratio_95'][table][name]}, {cost}")
    return out
