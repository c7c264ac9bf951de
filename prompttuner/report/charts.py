"""The report's charts as plain numbers; how they are drawn is the business of ``svg`` and ``png``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from prompttuner.report.data import JobBar, ReportData, Usage
from prompttuner.words import Counted

__all__ = ["PALETTE", "REST_COLOUR", "Area", "Bars", "Chart", "Gantt", "Row", "Span", "charts_of"]

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8a7a00", "#6a51a3", "#4d4d4d")
"""After Okabe and Ito: told apart by colour-blind readers too."""
KIND_COLOURS = {"busy": "#0072B2", "start-up": "#E69F00", "warm-idle": "#a6cee3"}
VERDICT_COLOURS = {"met": "#009E73", "missed": "#D55E00", "open": "#56B4E9", "best effort": "#999999"}
REST_COLOUR = "#bbbbbb"
TOP_JOBS = 8
TOP_POOLS = 8
MOST_BARS = 120
MOST_POINTS = 1500
LONGEST_LABEL = 24
"""Characters; names may have a hundred."""
SHORT_LABEL = 18
"""Beside a bar."""


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
    """A stretch of time of one row, with its kind."""

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
    """Rows of spans over time."""

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
        (short(name), colours[i % len(colours)], line) for i, (name, line) in enumerate(zip(merged, thin, strict=True))
    )
    return Area(title, "GPUs", thin_times, series, data.end_s, float(data.gpus))


def _pools(data: ReportData) -> Area:
    """The busiest pools each for itself, all others together: no two share a colour."""
    lines = data.pool_usage
    if len(lines) <= len(PALETTE):
        return _stacked("Busy GPUs by pool", lines, PALETTE, data)
    busiest = sorted(lines, key=lambda name: -_busy_s(lines[name], data.end_s))
    own, rest = busiest[:TOP_POOLS], busiest[TOP_POOLS:]
    times, merged = _merged({name: lines[name] for name in rest})
    sums = [round(sum(line[i] for line in merged.values())) for i in range(len(times))]
    shown = {name: lines[name] for name in own}
    shown[f"{len(rest)} other pools"] = [Usage(at, busy, 0, 0) for at, busy in zip(times, sums, strict=True)]
    return _stacked("Busy GPUs by pool", shown, (*PALETTE[:TOP_POOLS], REST_COLOUR), data)


def _busy_s(line: Sequence[Usage], end_s: float) -> float:
    ends = [*(usage.at_s for usage in line[1:]), end_s]
    return sum(usage.busy * (until - usage.at_s) for usage, until in zip(line, ends, strict=True))


def _jobs(data: ReportData) -> Area:
    """The jobs with most GPU-seconds each for itself, all others together."""
    largest = sorted((job for job in data.jobs if job.spans), key=lambda job: -job.gpu_s)[:TOP_JOBS]
    lines = dict(zip(_labels(largest), largest, strict=True))
    chosen = {job.id for job in largest}
    usage = {label: _line([job]) for label, job in lines.items()}
    rest = [job for job in data.jobs if job.id not in chosen and job.spans]
    if rest:
        usage[str(Counted(len(rest), "other job"))] = _line(rest)
    colours = (*PALETTE[: len(lines)], REST_COLOUR)
    return _stacked("Busy GPUs by job", usage, colours, data)


def _labels(jobs: Sequence[JobBar]) -> list[str]:
    """What to call each job: its name where that is short and no other job's here, else its id."""
    names = Counter(job.name for job in jobs)
    ids = {job.id for job in jobs}
    fits = [0 < len(job.name) <= LONGEST_LABEL and names[job.name] == 1 and job.name not in ids for job in jobs]
    return [job.name if fit else job.id for job, fit in zip(jobs, fits, strict=True)]


def short(text: str, most: int = LONGEST_LABEL) -> str:
    """The text, or as much of it as a label can hold."""
    return text if len(text) <= most else text[: most - 3] + "..."


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
        bars.append((short(label, SHORT_LABEL), parts))
    return Bars("Deadlines met", "jobs", tuple(bars) if data.jobs else ())


def _cost(data: ReportData) -> Bars:
    parts = tuple((kind, KIND_COLOURS[kind], seconds / 3600) for kind, seconds in data.cost().items())
    return Bars("Cost: GPU-hours held", "GPU-hours", (("all pools", parts),) if data.usage else ())


def _gantt(data: ReportData) -> Gantt:
    jobs = data.jobs
    title = "Jobs: GPUs held, and deadlines"
    if len(jobs) > MOST_BARS:
        late = [job for job in jobs if job.verdict(data.end_s) == "missed"]
        late = sorted(late, key=lambda job: job.deadline_s - min(job.end_s, data.end_s))[:MOST_BARS]
        shown = {job.id for job in late}
        others = sorted((job for job in jobs if job.id not in shown), key=lambda job: -job.gpu_s)
        jobs = [*late, *others[: MOST_BARS - len(late)]]
        title += f" ({len(jobs)} of {len(data.jobs)} jobs: those that missed by most, then the largest)"
    jobs = sorted(jobs, key=lambda job: (job.submit_s, job.id))
    rows = tuple(_row(job, label, data) for job, label in zip(jobs, _labels(jobs), strict=True))
    most = max((gpus for job in jobs for _, _, gpus in job.spans), default=1)
    return Gantt(title, rows, data.end_s, most, tuple(VERDICT_COLOURS.items()))


def _row(job: JobBar, label: str, data: ReportData) -> Row:
    verdict = job.verdict(data.end_s)
    tip = f"{job.id} {job.name} ({job.pool}): {verdict}, {job.state}, {job.gpu_s:.0f} GPU-s"
    if math.isfinite(job.deadline_s) and math.isfinite(job.end_s):
        slack = job.deadline_s - job.end_s
        tip += f", {abs(slack):.0f} s {'early' if slack >= 0 else 'late'}"
    spans = tuple(Span(*span) for span in job.spans)
    end = job.end_s if math.isfinite(job.end_s) else data.end_s
    return Row(
        short(label, SHORT_LABEL),
        VERDICT_COLOURS[verdict],
        job.submit_s,
        job.deadline_s,
        end,
        spans,
        tip + (f". {job.note}" if job.note else ""),
    )
