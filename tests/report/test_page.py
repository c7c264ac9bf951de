"""The page: complete, self-contained, safe against what jobs are called, and drawn as the numbers say."""

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prompttuner.report.charts import Area, Gantt, charts_of
from prompttuner.report.data import JobBar, ReportData, Usage
from prompttuner.report.page import page_of, summary, write_page
from prompttuner.report.png import plain, write_pngs
from prompttuner.report.svg import nice_ticks, svg_of, time_label, time_ticks

EVIL = '<script>alert("x")</script> & co'


def data(jobs: int = 3) -> ReportData:
    bars = [
        JobBar(
            f"j{k}", f"pool-{k % 2}", 10.0 * k, 10.0 * k + 5, 10.0 * k + 50, 10.0 * k + (60 if k % 3 else 40),
            spans=[(10.0 * k + 5, 10.0 * k + 20, 1), (10.0 * k + 20, 10.0 * k + 50, 4)],
        )
        for k in range(jobs)
    ]  # fmt: skip
    pools = {"pool-0": [Usage(5, 1, 0, 0), Usage(20, 4, 0, 0)], "pool-1": [Usage(15, 1, 0, 0), Usage(60, 0, 0, 0)]}
    usage = [Usage(0, 0, 2, 0), Usage(5, 5, 0, 1), Usage(60, 0, 0, 2)]
    return ReportData("A title", "a source", 0.0, 100.0, bars, usage, gpus=8, pool_usage=pools)


class Reader(HTMLParser):
    """Notes tags and everything a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "data", "action"}]


def test_page_holds_everything_and_loads_nothing() -> None:
    text = page_of(data())
    reader = Reader()
    reader.feed(text)
    assert reader.loads == [] and "script" not in reader.tags and "link" not in reader.tags
    assert "@import" not in text and "url(" not in text
    assert reader.tags.count("svg") == len(charts_of(data())) == 6
    for shown in ("A title", "a source", "2 of 3", "66.7 %", "j0", "pool-1"):
        assert shown in text


def test_names_cannot_break_out_of_the_page() -> None:
    evil = data()
    for job in evil.jobs:
        job.name = job.note = job.pool = EVIL
    evil.title = evil.source = EVIL
    evil.facts = {EVIL: EVIL}
    evil.pool_usage = {EVIL: evil.usage}
    text = page_of(evil)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("name", ["gpus", "pools", "jobs", "slo", "cost", "deadlines"])
def test_every_chart_is_well_formed_and_within_its_frame(name: str) -> None:
    chart = dict(charts_of(data(40)))[name]
    root = ET.fromstring(svg_of(chart))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = root.findall("{http://www.w3.org/2000/svg}rect")
    assert boxes
    for box in boxes:
        x, y = float(box.attrib["x"]), float(box.attrib["y"])
        assert 0 <= x <= width and 0 <= y <= height
        assert x + float(box.attrib["width"]) <= width + 0.5
    for polygon in root.findall("{http://www.w3.org/2000/svg}polygon"):
        ys = [float(point.split(",")[1]) for point in polygon.attrib["points"].split()]
        assert min(ys) >= 0 and max(ys) <= height


def test_many_jobs_are_cut_to_those_that_missed_and_the_largest_and_it_says_so() -> None:
    chart = dict(charts_of(data(400)))["deadlines"]
    assert isinstance(chart, Gantt)
    assert len(chart.rows) == 120
    assert "120 of 400 jobs" in chart.title
    assert sum("missed" in row.tip for row in chart.rows) == 120


def test_of_too_many_that_missed_those_that_missed_by_most_are_shown() -> None:
    many = data(400)
    many.end_s = 5000.0
    for k, job in enumerate(many.jobs):
        job.deadline_s = job.end_s - k
    chart = dict(charts_of(many))["deadlines"]
    assert isinstance(chart, Gantt)
    assert {row.label for row in chart.rows} == {f"j{k}" for k in range(280, 400)}


def test_jobs_are_called_by_name_unless_it_is_shared_or_long() -> None:
    named = data(5)
    for job, name in zip(named.jobs, ("mine", "same", "same", "x" * 60, "j0"), strict=True):
        job.name = name
    named.jobs.append(JobBar("idle", "pool-0", 0.0, name="never ran"))
    charts = dict(charts_of(named))
    gantt, area = charts["deadlines"], charts["jobs"]
    assert isinstance(gantt, Gantt) and isinstance(area, Area)
    assert [row.label for row in gantt.rows] == ["never ran", "mine", "j1", "j2", "j3", "j4"]
    assert {name for name, _, _ in area.series} == {"mine", "j1", "j2", "j3", "j4"}


def test_many_pools_share_no_colour_and_lose_no_gpu() -> None:
    many = data()
    many.pool_usage = {f"pool-{k:02d}": [Usage(k, k + 1, 0, 0), Usage(60 + k, 0, 0, 0)] for k in range(14)}
    chart = dict(charts_of(many))["pools"]
    assert isinstance(chart, Area)
    assert len({colour for _, colour, _ in chart.series}) == len(chart.series) == 9
    assert chart.series[-1][0] == "6 other pools"
    at = chart.times.index(30.0) if 30.0 in chart.times else max(i for i, t in enumerate(chart.times) if t <= 30)
    assert sum(values[at] for _, _, values in chart.series) == sum(range(1, 15))


def test_long_series_are_thinned_without_changing_their_area() -> None:
    long = data()
    long.usage = [Usage(0.01 * k, k % 7, 0, 0) for k in range(10_000)]
    chart = dict(charts_of(long))["gpus"]
    assert isinstance(chart, Area) and len(chart.times) <= 1500
    busy = chart.series[0][2]
    mean = sum(v * (b - a) for v, a, b in zip(busy, chart.times, [*chart.times[1:], 99.99], strict=True)) / 99.99
    assert mean == pytest.approx(3.0, rel=0.01)


def test_an_empty_stretch_says_so() -> None:
    empty = ReportData("t", "s", 0.0, 60.0, [], [])
    assert "Nothing happened" in page_of(empty)
    assert summary(empty)["Deadlines met"] == "none decided"


@pytest.mark.filterwarnings("ignore:Glyph")
def test_pngs_take_names_as_they_are(tmp_path: Path) -> None:
    """Not as formulas, which would end in an error, and however long."""
    pytest.importorskip("matplotlib")
    odd = data(4)
    for job, name in zip(odd.jobs, (r"$\frac{", "_hidden", "a$b", "x" * 300), strict=True):
        job.name, job.pool = name, name
    odd.pool_usage = {job.pool: [Usage(5, 1, 0, 0)] for job in odd.jobs}
    assert len(write_pngs(tmp_path, odd)) == 6
    assert [plain(name) for name in ("a$b", "ab")] == [r"a\$b", "ab"] and not plain("_hidden").startswith("_")


def test_page_is_private_and_pngs_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_page(tmp_path / "r.html", data())
    assert (tmp_path / "r.html").stat().st_mode & 0o777 == 0o600
    paths = write_pngs(tmp_path / "png", data())
    assert sorted(path.stem for path in paths) == ["cost", "deadlines", "gpus", "jobs", "pools", "slo"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.parametrize(("most", "last"), [(1, 1), (3, 3), (7, 8), (16, 20), (96, 100), (0.03, 0.03), (0, 1)])
def test_ticks_are_round_and_reach_the_top(most: float, last: float) -> None:
    assert nice_ticks(most)[-1] == pytest.approx(last)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0"), (5, "5s"), (90, "1m30s"), (3600, "1h"), (93784, "1d2h"), (-61, "-1m1s")]
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert time_label(seconds) == text


def test_time_ticks_never_pass_the_end() -> None:
    for end in (1.0, 59.0, 3600.0, 7200.0, 86400.0 * 40):
        ticks = time_ticks(end)
        assert ticks[-1] <= end and len(ticks) <= 10
    assert not re.search("inf|nan", svg_of(dict(charts_of(data()))["deadlines"]))
    assert math.isfinite(time_ticks(0.5)[-1])
