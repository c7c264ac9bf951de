"""The tables of docs/reference/policies.md, from the committed results: no figure there is copied by hand.

python benchmarks/policies_tables.py [--check]

Rewrites what stands between the two marks in the page; ``--check`` only says whether it is up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from policies_definitions import REPORT

RESULTS = Path(__file__).parent / "results" / "policies.json"
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "policies.md"
SCALE = Path(__file__).parent / "results" / "sim_scale.json"
AHEAD = Path(__file__).parent / "results" / "policies_prewarming.json"
BEGIN, END = "<!-- {}, made by benchmarks/policies_tables.py: begin -->", "<!-- {}: end -->"
ORDER = ("prompttuner", "infless", "elasticflow-fixed", "elasticflow", "edf", "sbatch")
TITLES = {
    "paper": "*As the paper* (the bank is ours alone)",
    "equal_bank": "*Equal bank* (all may use it and skip a lookup)",
    "no_bank": "*No bank*",
}
TARGETS = (
    ("paper", "infless", 6.0),
    ("paper", "elasticflow-fixed", 4.0),
    ("equal_bank", "infless", 3.0),
    ("equal_bank", "elasticflow-fixed", 1.5),
    ("no_bank", "infless", 1.5),
)
"""(table, baseline, how many times fewer deadlines missed)."""
WEAKER = (
    "The same with a *stated* bank: lognormal factors of median 0.5, sigma 0.35, half of the variance by task. "
    "Seeds: as above at the headline, one elsewhere."
)
Row = dict[str, Any]


def tables(result: dict[str, Any]) -> str:
    """All tables as Markdown."""
    bank = result["bank"]
    out = ["### Targets", "", *_targets(result, ""), ""]
    out += [
        "### Deadlines missed and cost",
        "",
        f"Bank savings: {bank}. Pooled over report windows and seeds; seeds of each row:",
        "",
    ]
    out += [_seeds(result), ""]
    out += _part(result)
    out += ["Where our GPU-seconds go at 32 GPUs with the bank, over the work bound:", "", *_parts(result["cells"]), ""]
    if result["weaker"]:
        out += ["### With a weaker bank", "", WEAKER, "", *_targets(result, "weaker"), ""]
        out += _part(result["weaker"])
    out += ["### Ablations and sensitivity", "", *_ablations(result["ablations"]), ""]
    out += ["Other assumptions at the headline:", "", *_sensitivity(result["sensitivity"])]
    return "\n".join(out)


def _targets(result: dict[str, Any], variant: str) -> list[str]:
    """Each target at 32 GPUs beside its figure, and whether it is met; of the tables that the part has."""
    head, part = result["headline"], result["weaker"] if variant else result
    violations, cost, rows = part["violations_ratio"], part["cost_ratio"], []
    for table, name, least in TARGETS:
        if table in violations:
            what = f"S = {head['slo']}, {table.replace('_', ' ')}: violations, {name} / ours"
            rows.append((what, violations[table][name], ">=", least))
    start = f"S = {head['slo']}, paper: cost, "
    rows.append((start + "infless / ours", cost["paper"]["infless"], ">=", 1.6))
    rows.append((start + "elasticflow-fixed / ours", cost["paper"]["elasticflow-fixed"], ">=", 2.8))
    rows.append((start + "the same, windows of load 0.5 or less", _low_load(result, variant), ">=", 4.5))
    for table, most in (("equal_bank", 1.05), ("no_bank", 1.03)):
        if table in cost:
            what = f"S = {head['slo']}, {table.replace('_', ' ')}: cost, ours / infless"
            rows.append((what, 1 / cost[table]["infless"], "<=", most))
    for row in part["tables"]["equal_bank"]:
        if row["policy"] == ORDER[0] and row["gpus"] == head["gpus"]:
            most = 15.0 if row["slo"] == "0.5" else 5.0
            rows.append((f"S = {row['slo']}: points above the bound", row["points_above_bound"], "<=", most))
            rows.append((f"S = {row['slo']}: cost over the work bound", row["cost_over_bound"], "<=", 1.10))
    out = ["| at 32 GPUs | figure | target | |", "|---|---|---|---|"]
    for what, figure, sign, limit in rows:
        met = figure is None or (figure >= limit if sign == ">=" else figure <= limit)
        shown = "ours misses none" if figure is None else f"{figure:.4g}"
        out.append(f"| {what} | {shown} | {sign} {limit:g} | {'met' if met else '**missed**'} |")
    return out


def _low_load(result: dict[str, Any], variant: str) -> float:
    """ElasticFlow's whole cluster over our cost, headline, windows of little load; the bank is ours alone."""
    quiet = {window.number for window in REPORT if window.load <= 0.5}
    place = tuple(result["headline"].values())
    cells = [c for c in result["cells"] if (c["gpus"], c["slo"]) == place and c["window"] in quiet]
    theirs = [c for c in cells if (c["policy"], c["bank"], c["variant"]) == ("elasticflow-fixed", False, "")]
    ours = [c for c in cells if (c["policy"], c["bank"], c["variant"]) == (ORDER[0], True, variant)]
    return float(sum(c["cluster_cost"] for c in theirs) / sum(c["cost"] for c in ours))


def _seeds(result: dict[str, Any]) -> str:
    seen: dict[tuple[int, str], set[int]] = {}
    for cell in result["cells"]:
        if not cell["variant"]:
            seen.setdefault((cell["gpus"], cell["slo"]), set()).add(cell["seed"])
    return "; ".join(f"{gpus} GPUs, S = {slo}: {len(seeds)}" for (gpus, slo), seeds in sorted(seen.items())) + "."


def _part(part: dict[str, Any]) -> list[str]:
    out = []
    for name, rows in part["tables"].items():
        out += [
            TITLES[name] + ":",
            "",
            "| GPUs, S | bound | " + " | ".join(ORDER) + " |",
            "|---" * (len(ORDER) + 2) + "|",
        ]
        for gpus, slo in dict.fromkeys((row["gpus"], row["slo"]) for row in rows):
            line = {row["policy"]: row for row in rows if (row["gpus"], row["slo"]) == (gpus, slo)}
            bound = line[ORDER[0]]["bound_violations_pct"]
            figures = [f"{line[p]['violations_pct']:.1f} ({line[p]['cost_over_bound']:.2f})" for p in ORDER]
            out.append(f"| {gpus}, {slo} | {bound:.1f} | " + " | ".join(figures) + " |")
        out.append("")
    return out + _ratios(part)


def _parts(cells: list[Row]) -> list[str]:
    """Busy, start-up and idle GPU-seconds of ours, pooled as above."""
    out = ["| S | busy | start-up | idle |", "|---|---|---|---|"]
    here = [c for c in cells if c["gpus"] == 32 and c["bank"] and not c["variant"]]
    for slo in dict.fromkeys(c["slo"] for c in here):
        ours = [c for c in here if (c["policy"], c["slo"]) == (ORDER[0], slo)]
        bound = sum(c["bound_cost"] for c in ours)
        shares = [f"{sum(c[kind] for c in ours) / bound:.3f}" for kind in ("busy", "startup", "idle")]
        out.append(f"| {slo} | " + " | ".join(shares) + " |")
    return out


def _ratios(part: dict[str, Any]) -> list[str]:
    out = [
        "Ratios at 32 GPUs, S = U(0.5,1.5): baseline / `prompttuner`, 95% intervals by bootstrap over windows, seeds:",
        "",
        "| table | baseline | violations | interval | cost | interval | by GPU-seconds busy |",
        "|---|---|---|---|---|---|---|",
    ]
    for table, ratios in part["violations_ratio"].items():
        for name, ratio in ratios.items():
            cost, held = part["cost_ratio"][table][name], part["cost_ratio"][table].get(name + " (held)", "")
            spans = [_span(part[key][table][name]) for key in ("violations_ratio_95", "cost_ratio_95")]
            shown = "ours misses none" if ratio is None else f"{ratio:.1f}"
            out.append(
                f"| {table.replace('_', ' ')} | {name} | {shown} | {spans[0]} | {cost:.2f} | {spans[1]} | {held} |"
            )
    return [*out, ""]


def _span(interval: list[float] | None) -> str:
    return (
        f"{interval[0]:.1f} to {interval[1]:.1f}"
        if interval and interval[1] >= 10
        else (f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "")
    )


def _ablations(rows: list[Row]) -> list[str]:
    slos = list(dict.fromkeys(row["slo"] for row in rows))
    out = ["Ours at 32 GPUs, first seed; missed %, cost over the work bound with the bank:", ""]
    out += ["| | " + " | ".join(f"S = {slo}" for slo in slos) + " |", "|---" * (len(slos) + 1) + "|"]
    for name in dict.fromkeys(row["policy"] for row in rows):
        line = {row["slo"]: row for row in rows if row["policy"] == name}
        figures = [
            f"{line[s]['violations_pct']:.1f}, {line[s]['cost_over_bound']:.3f}" if s in line else "-" for s in slos
        ]
        out.append(f"| {name} | " + " | ".join(figures) + " |")
    return out


def _sensitivity(rows: list[Row]) -> list[str]:
    out = ["| run | bank | policy | missed % | cost, 1000 GPU-s |", "|---|---|---|---|---|"]
    for row in rows:
        bank = "yes" if row["bank"] else "no"
        figures = f"{row['violations_pct']:.1f} | {row['cost'] / 1000:.0f}"
        out.append(f"| {row['variant']} | {bank} | {row['policy']} | {figures} |")
    return out


def speed(scale: dict[str, Any]) -> str:
    """The table of ``sim_scale.py``."""
    rows = [
        ("10,000 jobs on 1,000 GPUs", f"{scale['seconds_10k']} s ({scale['jobs_per_s_10k']:.0f} jobs/s)", ""),
        (
            "100,000 jobs on 1,000 GPUs",
            f"{scale['seconds_100k']} s ({scale['jobs_per_s_100k']:.0f} jobs/s)",
            "under 120 s",
        ),
        ("time for each job, 100,000 over 10,000 jobs", f"{scale['growth']}", "at most 2"),
        (
            "one planning step, 9,000 waiting and 1,000 running jobs, 1,000 GPUs",
            f"{scale['plan_ms']} ms",
            "under 100 ms",
        ),
        ("cluster01 (1,595 jobs, 512 GPUs) with our `elasticflow`", f"{scale['cluster01_s']} s", "under 30 s"),
    ]
    return "\n".join(["| | figure | target |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def ahead(result: dict[str, Any]) -> str:
    """The table of ``policies_prewarming.py``."""
    out = ["| stream | jobs | asked ahead | missed | without | 1000 GPU-s | without |", "|---" * 7 + "|"]
    for name, row in result["streams"].items():
        on, off = row["on"], row["off"]
        counts = f"{on['jobs']} | {on['ahead']} | {on['missed']} | {off['missed']}"
        out.append(f"| {name} | {counts} | {on['cost'] / 1000:.1f} | {off['cost'] / 1000:.1f} |")
    return "\n".join(out)


def page_with(page: str, parts: dict[str, str]) -> str:
    """The page with these tables between their marks."""
    for name, made in parts.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, found, rest = page.partition(begin)
        if not found or end not in rest:
            raise SystemExit(f"{PAGE} lacks the marks {begin} and {end}")
        page = f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}"
    return page


def made() -> dict[str, str]:
    """Each part of the page, from the committed results."""
    return {
        "comparison": tables(json.loads(RESULTS.read_text())),
        "pre-warming": ahead(json.loads(AHEAD.read_text())),
        "speed": speed(json.loads(SCALE.read_text())),
    }


def main() -> None:
    """Rewrite the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    page = PAGE.read_text()
    wanted = page_with(page, made())
    if check and wanted != page:
        raise SystemExit(f"{PAGE} is not what the results say: run python benchmarks/policies_tables.py")
    if not check:
        PAGE.write_text(wanted)
    print(f"{PAGE}: tables of {RESULTS.name} and {SCALE.name}")


if __name__ == "__main__":
    main()
