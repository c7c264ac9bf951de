"""Charts as SVG text, small enough to be part of a page: no fonts, no scripts, nothing loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from prompttuner.report.charts import Area, Bars, Chart, Gantt, Row
from prompttuner.words import Counted

__all__ = ["nice_ticks", "svg_of", "time_label"]

WIDTH = 960
LEFT, RIGHT = 130, 16
PLOT = WIDTH - LEFT - RIGHT
INK, GRID = "#222", "#ddd"
FEW_ROWS = 12
"""So few jobs get rows in which two GPUs can be told from one at a glance."""


def svg_of(chart: Chart) -> str:
    """The ``<svg>`` element of a chart, with a title for screen readers."""
    if isinstance(chart, Area):
        body, height = _area(chart)
    elif isinstance(chart, Bars):
        body, height = _bars(chart)
    else:
        body, height = _gantt(chart)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(chart.title)}</title>{"".join(body)}</svg>'
    )


def nice_ticks(most: float, count: int = 5) -> list[float]:
    """Round values from 0 to at least ``most``, about ``count`` steps."""
    if not most > 0:
        return [0.0, 1.0]
    rough = most / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough - 1e-12)
    return [step * k for k in range(math.ceil(most / step - 1e-9) + 1)]


def time_ticks(end_s: float, count: int = 8) -> list[float]:
    """Times from 0 to ``end_s`` at steps that people count in."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
    step = next((s for s in steps if end_s / s <= count), math.ceil(end_s / count / 86400) * 86400)
    return [float(step * k) for k in range(int(end_s / step + 1e-9) + 1)]


def time_label(seconds: float) -> str:
    """``90`` -> ``1m30s``, short."""
    total = round(seconds)
    sign, total = ("-" if total < 0 else ""), abs(total)
    days, rest = divmod(total, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (secs, "s")]
    shown = [f"{value}{unit}" for value, unit in parts if value]
    return sign + "".join(shown[:2]) if shown else "0"


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, colour: str, tip: str = "", opacity: float = 1.0) -> str:
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    faint = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
    box = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}"'
    return f'<rect {box} fill="{colour}"{faint}>{inner}</rect>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = GRID, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'


def _legend(entries: Sequence[tuple[str, str]], y: float) -> list[str]:
    out, x = [], float(LEFT)
    for name, colour in entries:
        width = 22 + 7.2 * len(name)
        if x + width > WIDTH - RIGHT and x > LEFT:
            x, y = float(LEFT), y + 18
        out += [_rect(x, y - 9, 11, 11, colour), _text(x + 15, y, name)]
        x += width + 8
    return out


def _legend_height(entries: Sequence[tuple[str, str]]) -> int:
    total = sum(30 + 7.2 * len(name) for name, _ in entries)
    return 18 * math.ceil(total / PLOT)


def _time_axis(end_s: float, bottom: float, top: float) -> list[str]:
    out = []
    for tick in time_ticks(end_s):
        x = LEFT + PLOT * tick / max(end_s, 1e-9)
        out += [_line(x, top, x, bottom), _text(x, bottom + 15, time_label(tick), "middle")]
    return out


def _area(chart: Area) -> tuple[list[str], int]:
    tall = 210
    entries = [(name, colour) for name, colour, _ in chart.series]
    extra = _legend_height(entries)
    top, bottom, height = 10, 10 + tall, tall + 30 + extra + 8
    sums = [sum(values) for values in zip(*(line for _, _, line in chart.series), strict=True)]
    ticks = nice_ticks(max([*sums, chart.limit, 1.0]))
    scale = tall / ticks[-1]
    out = _time_axis(chart.end_s, bottom, top)
    for tick in ticks:
        y = bottom - tick * scale
        out += [_line(LEFT, y, WIDTH - RIGHT, y), _text(LEFT - 6, y + 4, f"{tick:g}", "end")]
    out.append(_text(LEFT - 40, top + 4, chart.unit, "end"))
    xs = [LEFT + PLOT * t / max(chart.end_s, 1e-9) for t in (*chart.times, chart.end_s)]
    floor = [0.0] * len(chart.times)
    for name, colour, values in chart.series:
        ceiling = [low + value for low, value in zip(floor, values, strict=True)]
        upper = _steps(xs, [bottom - v * scale for v in ceiling])
        lower = _steps(xs, [bottom - v * scale for v in floor])
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *reversed(lower)])
        out.append(f'<polygon points="{points}" fill="{colour}"><title>{escape(name)}</title></polygon>')
        floor = ceiling
    if chart.limit:
        y = bottom - chart.limit * scale
        out.append(_line(LEFT, y, WIDTH - RIGHT, y, INK, ' stroke-dasharray="4 3"'))
    return [*out, *_legend(entries, bottom + 36)], height


def _steps(xs: list[float], ys: list[float]) -> list[tuple[float, float]]:
    points = []
    for left, right, y in zip(xs, xs[1:], ys, strict=False):
        points += [(left, y), (right, y)]
    return points


def _bars(chart: Bars) -> tuple[list[str], int]:
    most = max((sum(value for _, _, value in parts) for _, parts in chart.bars), default=1.0) or 1.0
    out: list[str] = []
    y = 8.0
    for label, parts in chart.bars:
        out.append(_text(LEFT - 8, y + 15, label, "end"))
        x = float(LEFT)
        total = sum(value for _, _, value in parts) or 1.0
        for name, colour, value in parts:
            width = PLOT * value / most
            if value <= 0:
                continue
            share = 100 * value / total
            out.append(_rect(x, y, width, 22, colour, f"{label}: {name} {value:.6g} {chart.unit} ({share:.1f} %)"))
            shown = f"{value:.4g}" + (f" ({share:.0f} %)" if width > 90 else "")
            if width > 9 * len(shown):
                out.append(_text(x + width / 2, y + 15, shown, "middle", "#fff" if colour not in PALE else INK))
            x += width
        y += 30
    names = list(dict.fromkeys((name, colour) for _, parts in chart.bars for name, colour, _ in parts))
    return [*out, *_legend(names, y + 14)], int(y + 14 + _legend_height(names) + 4)


PALE = {"#a6cee3", "#E69F00", "#56B4E9"}


def _gantt(chart: Gantt) -> tuple[list[str], int]:
    row_height = 15 if len(chart.rows) > FEW_ROWS else 28
    top, bottom = 8, 8 + row_height * len(chart.rows)
    last = max([chart.end_s, *(row.deadline_s for row in chart.rows if row.deadline_s < chart.end_s * 1.15)])
    out = _time_axis(last, bottom, top)
    for k, row in enumerate(chart.rows):
        out += _gantt_row(row, top + k * row_height, row_height, last, chart.most_gpus)
    out += _legend(chart.legend, bottom + 34)
    note = "thin line: from submission to end; bar: GPUs held (the thicker the more); tick: deadline"
    out.append(_text(LEFT, bottom + 54, note))
    return out, bottom + 62


def _gantt_row(row: Row, y: float, height: int, last: float, most: int) -> list[str]:
    def x_of(at: float) -> float:
        return LEFT + PLOT * min(max(at, 0.0), last) / max(last, 1e-9)

    middle = y + height / 2
    out = [_text(LEFT - 8, middle + 4, row.label, "end")]
    out.append(_line(x_of(row.submit_s), middle, x_of(row.end_s), middle, row.colour))
    for span in row.spans:
        thick = 3 + (height - 5) * span.gpus / max(most, 1)
        begin, end = x_of(span.begin_s), x_of(span.end_s)
        tip = f"{row.tip}; {Counted(span.gpus, 'GPU')}"
        out.append(_rect(begin, middle - thick / 2, end - begin, thick, row.colour, tip))
    if math.isfinite(row.deadline_s) and 0 <= row.deadline_s <= last:
        x = x_of(row.deadline_s)
        out.append(_line(x, y + 1, x, y + height - 1, INK, ' stroke-width="1.5"'))
    if not row.spans:
        tip = f"<title>{escape(row.tip)}</title>"
        out.append(f'<circle cx="{x_of(row.submit_s):.1f}" cy="{middle:.1f}" r="3" fill="{row.colour}">{tip}</circle>')
    return out
