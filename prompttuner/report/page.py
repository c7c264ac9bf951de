"""The report's page: one HTML file with everything in it."""

from __future__ import annotations

import math
import time
from html import escape
from pathlib import Path

from prompttuner.files import write_bytes
from prompttuner.report.charts import charts_of
from prompttuner.report.data import JobBar, ReportData
from prompttuner.report.svg import svg_of, time_label
from prompttuner.words import Counted

__all__ = ["page_of", "summary", "write_page"]

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 980px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: .2em; } h2 { font-size: 1.1em; margin: 1.8em 0 .4em; }
svg { max-width: 100%; height: auto; font-size: 12px; } .source { color: #555; margin-top: 0; }
.wide { overflow-x: auto; } td { max-width: 22em; overflow-wrap: break-word; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .15em .9em .15em 0; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } tbody tr:nth-child(odd) { background: #f6f6f6; }
.facts { display: flex; flex-wrap: wrap; gap: .6em 2.2em; margin: 1em 0; } .facts div { min-width: 6em; }
.facts b { display: block; font-size: 1.45em; } .missed { color: #b04000; }
details summary { cursor: pointer; margin: 1.5em 0 .5em; }
@media print { body { max-width: none; margin: 0; } h2 { break-after: avoid; } svg { break-inside: avoid; } }
"""
MOST_ROWS = 2000


def summary(data: ReportData) -> dict[str, str]:
    """The figures at the top of the page, in words."""
    verdicts = data.verdicts()
    decided = verdicts["met"] + verdicts["missed"]
    cost = data.cost()
    held = sum(cost.values())
    out = {
        "Jobs": str(len(data.jobs)),
        "Deadlines met": f"{verdicts['met']} of {decided}" if decided else "none decided",
        "SLO attainment": f"{100 * verdicts['met'] / decided:.1f} %" if decided else "-",
        "Not decided": str(verdicts["open"]) if verdicts["open"] else "",
        "Best effort": str(verdicts["best effort"]) if verdicts["best effort"] else "",
        "Cost": f"{held / 3600:.2f} GPU-hours" if data.usage else "",
        "of it busy": f"{100 * cost['busy'] / held:.1f} %" if held else "",
        "Time shown": time_label(data.end_s - data.begin_s),
    }
    return {name: text for name, text in {**out, **data.facts}.items() if text}


def page_of(data: ReportData) -> str:
    """The HTML text."""
    facts = "".join(f"<div>{escape(name)}<b>{escape(text)}</b></div>" for name, text in summary(data).items())
    charts = "".join(f"<h2>{escape(chart.title)}</h2>{svg_of(chart)}" for _, chart in charts_of(data))
    if not charts:
        charts = "<p>Nothing happened in this time: no jobs and no GPUs held.</p>"
    when = f" Times count from {_moment(data.epoch_s)}." if data.epoch_s else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{escape(data.title)}</h1><p class="source">{escape(data.source)}.{escape(when)}</p>'
        f'<div class="facts">{facts}</div>{charts}{_table(data)}'
        f'<p class="source">Cost is GPU-seconds of allocations held: busy, start-up and warm-idle. Rejected and failed '
        "jobs with a deadline count as missed. Written by <code>prompttuner report</code>.</p></body></html>\n"
    )


def write_page(path: Path, data: ReportData) -> None:
    """Write the page atomically, mode 0600."""
    write_bytes(path, page_of(data).encode())


def _moment(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(epoch_s))


def _table(data: ReportData) -> str:
    if not data.jobs:
        return ""
    heads = ("Job", "Name", "Pool", "State", "Deadline", "Submitted", "Waited", "Took", "Slack", "GPU-s", "Note")
    numeric = {"Submitted", "Waited", "Took", "Slack", "GPU-s"}
    head = "".join(f"<th{' class=n' if name in numeric else ''}>{name}</th>" for name in heads)
    body = "".join(_table_row(job, data.end_s) for job in data.jobs[:MOST_ROWS])
    more = f"<p>{len(data.jobs) - MOST_ROWS} more jobs are not listed.</p>" if len(data.jobs) > MOST_ROWS else ""
    opened = " open" if len(data.jobs) <= 40 else ""
    return (
        f"<details{opened}><summary>Table of {Counted(len(data.jobs), 'job')}</summary>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}</details>'
    )


def _table_row(job: JobBar, now_s: float) -> str:
    verdict = job.verdict(now_s)
    slack = job.deadline_s - job.end_s if math.isfinite(job.end_s) and math.isfinite(job.deadline_s) else math.nan
    cells = [
        (job.id, ""), (job.name, ""), (job.pool, ""), (job.state, ""),
        (verdict, "missed" if verdict == "missed" else ""),
        (time_label(job.submit_s), "n"), (_seconds(job.start_s - job.submit_s), "n"),
        (_seconds(job.end_s - job.submit_s), "n"), (_seconds(slack), "n"), (f"{job.gpu_s:.0f}", "n"), (job.note, ""),
    ]  # fmt: skip
    return (
        "<tr>"
        + "".join(f"<td class={css}>{escape(text)}</td>" if css else f"<td>{escape(text)}</td>" for text, css in cells)
        + "</tr>"
    )


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if math.isfinite(value) else ""
