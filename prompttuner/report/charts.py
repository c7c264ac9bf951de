"""The report's charts as plain numbers; how they are drawn is the business of ``svg`` and ``png``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from prompttuner.report.data import JobBar, ReportData, Usage

__all__ = ["Area", "Bars", "Chart", "Gantt", "Row", "Span", "charts_of"]

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8a7a00", "#6a51a3", "#4d4d4d")
"""After Okabe and Ito: told apart by colour-blind readers too."""
KIND_COLOURS = {"busy": "#0072B2", "start-up": "#E69F00", "warm-idle": "#a6cee3"}
VERDICT_COLOURS = {"met": "#009E73", "missed": "#D55E00", "open": "#56B4E9", "best effort": "#999999"}
TOP_JOBS = 8
MOST_BARS = 120
MOST_POINTS = 1500


@dataclass(frozen=True, slots=True)
class Area:
    """Stacked step areas: ``times`` (n,), each series (n,) holding from its time on, the last until ``end_s``."""

    title: str
    unit: str
    times: tuple[float, ...]
    series: tuple[tuple[str, str, tuple[float, ...]], ...]
    """(name, colour, values)."""
    end_s: float
    limit: float = 0.0
    """A line across (the cluster's size); 0 without."""


@dataclass(frozen=True, slots=True)
class Bars:
    """One stacked horizontal bar for each label."""

    title: str
    unit: str
    bars: tuple[tuple[str, tuple[tuple[str, str, float], ...]], ...]
    """(label, ((part, colour, value), ...))."""


@dataclass(frozen=True, slots=True)
class Span:
    begin_s: float
    end_s: float
    gpus: int


@dataclass(frozen=True, slots=True)
class Row:
    """One job of the Gantt chart."""

    label: str
    colour: str
    submit_s: float
    deadline_s: float
    end_s: float
    spans: tuple[Span, ...]
    tip: str


@dataclass(frozen=True, slots=True)
class Gantt:
    title: str
    rows: tuple[Row, ...]
    end_s: float
    most_gpus: int
    legend: tuple[tuple[str, str], ...] = field(default_factory=tuple)


Chart = Area | Bars | Gantt


def charts_of(data: ReportData) -> list[tuple[str, Chart]]:
    """(short name for files, chart) in the order of the page."""
    charts: list[tuple[str, Chart]] = [
        ("gpus", _gpus(data)),
        ("pools", _pools(data)),
        ("jobs", _jobs(data)),
        ("slo", _slo(data)),
        ("cost", _cost(data)),
        ("deadlines", _gantt(data)),
    ]
    return [(name, chart) for name, chart in charts if not _empty(chart)]


def _empty(chart: Chart) -> bool:
    if isinstance(chart, Area):
        return not chart.times or not chart.series
    return not (chart.bars if isinstance(chart, Bars) else chart.rows)


def _thin(times: Sequence[float], values: list[Sequence[float]]) -> tuple[tuple[float, ...], list[tuple[float, ...]]]:
    """At most MOST_POINTS steps: each kept one carries the mean, weighted by time, of those it stands for."""
    n = len(times)
    if n <= MOST_POINTS:
        return tuple(times), [tuple(v) for v in values]
    group = math.ceil(n / MOST_POINTS)
    kept = tuple(times[::group])
    widths = [b - a for a, b in zip(times, [*times[1:], times[-1]], strict=True)]
    out = []
    for series in values:
        line = []
        for i in range(0, n, group):
            total = sum(widths[i : i + group])
            area = sum(v * w for v, w in zip(series[i : i + group], widths[i : i + group], strict=True))
            line.append(area / total if total > 0 else float(series[i]))
        out.append(tuple(line))
    return kept, out


def _gpus(data: ReportData) -> Area:
    values: list[Sequence[float]] = [
        [u.busy for u in data.usage],
        [u.starting for u in data.usage],
        [u.idle for u in data.usage],
    ]
    times, thin = _thin([u.at_s for u in data.usage], values)
    series = tuple((name, colour, line) for (name, colour), line in zip(KIND_COLOURS.items(), thin, strict=True))
    return Area("GPUs held, by what they do", "GPUs", times, series, data.end_s, float(data.gpus))


def _merged(lines: dict[str, list[Usage]]) -> tuple[list[float], dict[str, list[float]]]:
    """Lines of several names on one common time axis (busy GPUs only)."""
    changes = sorted((usage.at_s, name, usage.busy) for name, usages in lines.items() for usage in usages)
    now = dict.fromkeys(lines, 0)
    times: list[float] = []
    out: dict[str, list[float]] = {name: [] for name in lines}
    for at, name, busy in changes:
        now[name] = busy
        if times and times[-1] == at:
            out[name][-1] = float(busy)
            continue
        times.append(at)
        for other, line in out.items():
            line.append(float(now[other]))
    return times, out


def _stacked(title: str, lines: dict[str, list[Usage]], colours: Sequence[str], data: ReportData) -> Area:
    times, merged = _merged(lines)
    thin_times, thin = _thin(times, list(merged.values()))
    series = tuple(
        (name, colours[i % len(colours)], line) for i, (name, line) in enumerate(zip(merged, thin, strict=True))
    )
    return Area(title, "GPUs", thin_times, series, data.end_s, float(data.gpus))


def _pools(data: ReportData) -> Area:
    return _stacked("Busy GPUs by pool", data.pool_usage, PALETTE, data)


def _jobs(data: ReportData) -> Area:
    """The jobs with most GPU-seconds each for itself, all others together."""
    largest = sorted(data.jobs, key=lambda job: -job.gpu_s)[:TOP_JOBS]
    lines = {job.name or job.id: job for job in largest if job.spans}
    if len(lines) < len(largest):  # names that several jobs share
        lines = {job.id: job for job in largest if job.spans}
    chosen = {job.id for job in lines.values()}
    usage = {label: _line([job]) for label, job in lines.items()}
    rest = [job for job in data.jobs if job.id not in chosen and job.spans]
    if rest:
        usage[f"{len(rest)} other jobs"] = _line(rest)
    colours = (*PALETTE[: len(lines)], "#bbbbbb")
    return _stacked("Busy GPUs by job", usage, colours, data)


def _line(jobs: list[JobBar]) -> list[Usage]:
    changes = sorted(change for job in jobs for b, e, gpus in job.spans for change in ((b, gpus), (e, -gpus)))
    out: list[Usage] = []
    held = 0
    for at, delta in changes:
        held += delta
        if out and out[-1].at_s == at:
            out.pop()
        out.append(Usage(at, held, 0, 0))
    return out


def _slo(data: ReportData) -> Bars:
    groups: dict[str, list[JobBar]] = {"all jobs": data.jobs}
    pools = sorted({job.pool for job in data.jobs})
    if len(pools) > 1:
        groups.update({pool: [job for job in data.jobs if job.pool == pool] for pool in pools})
    bars = []
    for label, jobs in groups.items():
        verdicts = [job.verdict(data.end_s) for job in jobs]
        parts = tuple((kind, colour, float(verdicts.count(kind))) for kind, colour in VERDICT_COLOURS.items())
        bars.append((label, parts))
    return Bars("Deadlines met", "jobs", tuple(bars) if data.jobs else ())


def _cost(data: ReportData) -> Bars:
    parts = tuple((kind, KIND_COLOURS[kind], seconds / 3600) for kind, seconds in data.cost().items())
    return Bars("Cost: GPU-hours held", "GPU-hours", (("all pools", parts),) if data.usage else ())


def _gantt(data: ReportData) -> Gantt:
    jobs = data.jobs
    title = "Jobs: GPUs held, and deadlines"
    if len(jobs) > MOST_BARS:
        missed = [job for job in jobs if job.verdict(data.end_s) == "missed"][:MOST_BARS]
        others = sorted((job for job in jobs if job not in missed), key=lambda job: -job.gpu_s)
        jobs = [*missed, *others[: MOST_BARS - len(missed)]]
        title += f" ({len(jobs)} of {len(data.jobs)} jobs: those that missed, then the largest)"
    rows = tuple(_row(job, data) for job in sorted(jobs, key=lambda job: (job.submit_s, job.id)))
    most = max((gpus for job in jobs for _, _, gpus in job.spans), default=1)
    return Gantt(title, rows, data.end_s, most, tuple(VERDICT_COLOURS.items()))


def _row(job: JobBar, data: ReportData) -> Row:
    verdict = job.verdict(data.end_s)
    tip = f"{job.id} {job.name} ({job.pool}): {verdict}, {job.state}, {job.gpu_s:.0f} GPU-s"
    if math.isfinite(job.deadline_s) and math.isfinite(job.end_s):
        slack = job.deadline_s - job.end_s
        tip += f", {abs(slack):.0f} s {'early' if slack >= 0 else 'late'}"
    spans = tuple(Span(*span) for span in job.spans)
    label = job.name if job.name and len(job.name) <= 18 else job.id[:18]
    end = job.end_s if math.isfinite(job.end_s) else data.end_s
    return Row(
        label,
        VERDICT_COLOURS[verdict],
        job.submit_s,
        job.deadline_s,
        end,
        spans,
        tip + (f". {job.note}" if job.note else ""),
    )
