"""The report's charts as PNG files, drawn by matplotlib (the ``plots`` extra)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from prompttuner.errors import ConfigError
from prompttuner.files import make_private_dir
from prompttuner.report.charts import Area, Bars, Gantt, charts_of
from prompttuner.report.data import ReportData
from prompttuner.report.svg import time_label, time_ticks

__all__ = ["load_pyplot", "plain", "write_pngs"]


def load_pyplot() -> Any:
    """``matplotlib.pyplot`` without a display.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'prompttuner[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plain(text: str) -> str:
    """Text that matplotlib neither reads as a formula nor, for a leading ``_``, leaves out of a legend."""
    return ("\N{ZERO WIDTH SPACE}" if text.startswith("_") else "") + text.replace("$", r"\$")


def write_pngs(folder: Path, data: ReportData) -> list[Path]:
    """One file a chart, ``<folder>/<chart>.png``; returns their paths.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    pyplot = load_pyplot()
    make_private_dir(folder)
    paths = []
    for name, chart in charts_of(data):
        rows = len(chart.rows) if isinstance(chart, Gantt) else len(chart.bars) if isinstance(chart, Bars) else 12
        figure, axes = pyplot.subplots(figsize=(10, max(2.4, 0.25 * rows + 1.2)), layout="constrained")
        axes.set_title(chart.title, loc="left", fontsize=11)
        if isinstance(chart, Area):
            _area(axes, chart)
        elif isinstance(chart, Bars):
            _bars(axes, chart)
        else:
            _gantt(axes, chart)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        path.chmod(0o600)
        paths.append(path)
    return paths


def _time_axis(axes: Any, end_s: float) -> None:
    ticks = time_ticks(end_s)
    axes.set_xlim(0, end_s)
    axes.set_xticks(ticks, [time_label(tick) for tick in ticks])


def _area(axes: Any, chart: Area) -> None:
    times = [*chart.times, chart.end_s]
    stacks = [[*line, line[-1]] for _, _, line in chart.series]
    names = [plain(name) for name, _, _ in chart.series]
    axes.stackplot(times, stacks, labels=names, colors=[colour for _, colour, _ in chart.series], step="post")
    if chart.limit:
        axes.axhline(chart.limit, color="#222", linestyle="--", linewidth=1)
    axes.set_ylabel(chart.unit)
    axes.yaxis.get_major_locator().set_params(integer=True)
    _time_axis(axes, chart.end_s)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _bars(axes: Any, chart: Bars) -> None:
    seen: set[str] = set()
    for k, (_, parts) in enumerate(chart.bars):
        at = 0.0
        for name, colour, value in parts:
            label = None if name in seen else name
            seen.add(name)
            axes.barh(k, value, left=at, color=colour, label=label, height=0.6)
            at += value
    axes.set_yticks(range(len(chart.bars)), [plain(label) for label, _ in chart.bars])
    axes.invert_yaxis()
    axes.set_xlabel(chart.unit)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _gantt(axes: Any, chart: Gantt) -> None:
    last = max([chart.end_s, *(row.deadline_s for row in chart.rows if row.deadline_s < chart.end_s * 1.15)])
    for k, row in enumerate(chart.rows):
        axes.plot([row.submit_s, row.end_s], [k, k], color=row.colour, linewidth=0.8)
        for span in row.spans:
            thick = 0.2 + 0.7 * span.gpus / max(chart.most_gpus, 1)
            axes.barh(k, span.end_s - span.begin_s, left=span.begin_s, height=thick, color=row.colour)
        if math.isfinite(row.deadline_s) and row.deadline_s <= last:
            axes.plot([row.deadline_s, row.deadline_s], [k - 0.45, k + 0.45], color="#222", linewidth=1.2)
    for name, colour in chart.legend:
        axes.barh(0, 0, color=colour, label=name)
    axes.set_yticks(range(len(chart.rows)), [plain(row.label) for row in chart.rows], fontsize=7)
    axes.set_ylim(len(chart.rows) - 0.4, -0.6)
    _time_axis(axes, last)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
