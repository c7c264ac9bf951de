"""Draw the rooms of the package and which room imports which, as SVG: ``python tools/draw_rooms.py [--check]``.

Rooms and arrows are read from the source: a room is a folder (or a file) directly below ``prompttuner``, an arrow an
import anywhere in it. An arrow that follows from others (a room reaches the same room by a longer way) is left out, so
that the order of the rooms can be seen. ``--check`` writes nothing and fails if the drawing in docs is out of date.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Mapping
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prompttuner"
DRAWING = ROOT / "docs" / "rooms.svg"
GROUND = ("errors", "files", "states", "words", "__version__")
"""Modules that nearly every room uses; they are one box without arrows at the foot of the drawing."""
FORMER = "tuning"
WIDTH, BOX_WIDTH, BOX_HEIGHT, LEVEL_HEIGHT = 1180, 200, 64, 104
SWEEPS = 8
"""How often the rooms of each level are put in the order of what they are connected with (barycentre heuristic)."""
STYLE = """
.page { fill: #fff } .box { fill: #eef3fb; stroke: #35507a } .ground { fill: #f2f2f2; stroke: #777 }
.name { font: 600 14px sans-serif; fill: #14253f } .text { font: 11px sans-serif; fill: #444 }
.arrow { fill: none; stroke: #7c8ca5; stroke-width: 1.2 }
@media (prefers-color-scheme: dark) {
.page { fill: #14181f } .box { fill: #1f2b3d; stroke: #8fb0e0 } .ground { fill: #24272c; stroke: #999 }
.name { fill: #e6eefb } .text { fill: #c3c8d0 } .arrow { stroke: #93a4be } }
"""


def rooms() -> dict[str, list[Path]]:
    """Name of each room -> its Python files."""
    found = {
        entry.name: sorted(entry.resolve().rglob("*.py"))
        for entry in sorted(PACKAGE.iterdir())
        if entry.is_dir() and entry.name not in {FORMER, "__pycache__"}
    }
    return {name: files for name, files in found.items() if files}


def imported(path: Path) -> set[str]:
    """Rooms whose modules a file imports, within functions and for annotations too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("prompttuner.")}


def arrows(found: Mapping[str, list[Path]]) -> dict[str, set[str]]:
    """Room -> the rooms it imports, itself and the ground left out."""
    return {
        name: {other for path in files for other in imported(path)} & set(found) - {name}
        for name, files in found.items()
    }


def levels(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Room -> its height: one more than the highest room that it imports. Raises ValueError for a circle."""
    height: dict[str, int] = {}

    def visit(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError("rooms import each other in a circle: " + " -> ".join([*above[above.index(room) :], room]))
        if room not in height:
            height[room] = 1 + max((visit(below, (*above, room)) for below in sorted(graph[room])), default=0)
        return height[room]

    for room in sorted(graph):
        visit(room, ())
    return height


def direct(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that do not follow from others (the transitive reduction of a graph without circles)."""

    def reach(room: str) -> set[str]:
        return set(graph[room]).union(*(reach(below) for below in graph[room]))

    return {
        room: {b for b in below if not any(b in reach(o) for o in below if o != b)} for room, below in graph.items()
    }


def with_waypoints(graph: Mapping[str, set[str]], height: Mapping[str, int]) -> tuple[dict[str, int], list[list[str]]]:
    """(level of every room and waypoint, the way of every arrow): an arrow has a waypoint at each level it passes."""
    level, ways = dict(height), []
    for room in sorted(graph):
        for below in sorted(graph[room]):
            points = {f"{room}>{below}@{between}": between for between in range(height[room] - 1, height[below], -1)}
            level |= points
            ways.append([room, *points, below])
    return level, ways


def ordered(rows: list[list[str]], ways: list[list[str]]) -> list[list[str]]:
    """Each level's rooms and waypoints, sorted so that few arrows cross (barycentres; Sugiyama, Tagawa, Toda 1981)."""
    neighbours: dict[str, set[str]] = {point: set() for row in rows for point in row}
    for way in ways:
        for one, other in pairwise(way):
            neighbours[one].add(other)
            neighbours[other].add(one)
    for _ in range(SWEEPS):
        at = {point: (index + 1) / (len(row) + 1) for row in rows for index, point in enumerate(row)}

        def middle(point: str, at: Mapping[str, float] = at) -> tuple[float, str]:
            """Where its neighbours are on average; rounded, as sums of floats depend on the order of a set."""
            return round(sum(at[n] for n in neighbours[point]) / max(1, len(neighbours[point])), 6), point

        rows = [sorted(row, key=middle) for row in rows]
    return rows


def place(rows: list[list[str]]) -> dict[str, tuple[float, float]]:
    """Left upper corner of every box and waypoint, in pixels."""
    places = {}
    for number, row in enumerate(rows):
        gap = (WIDTH - sum(map(width, row))) / (len(row) + 1)
        x = gap
        for point in row:
            places[point] = (x, 16.0 + number * LEVEL_HEIGHT)
            x += width(point) + gap
    return places


def width(point: str) -> float:
    """Width of a box; a waypoint has none."""
    return 0.0 if "@" in point else BOX_WIDTH


def draw() -> str:
    """The whole drawing."""
    found = rooms()
    graph = arrows(found)
    height = levels(graph)
    top = max(height.values())
    level, ways = with_waypoints(direct(graph), height)
    places = place(ordered([sorted(p for p in level if level[p] == row) for row in range(top, 0, -1)], ways))
    total = 16 + top * LEVEL_HEIGHT + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" role="img">',
        "<title>The rooms of prompttuner: an arrow means that a room imports another</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="arrow" d="M0 0L8 4L0 8"/></marker></defs>',
        f'<rect class="page" width="{WIDTH}" height="{total}"/>',
    ]
    parts += [_arrow(way, places) for way in ways]
    parts += [_box(places[room], room, found[room]) for room in sorted(found)]
    parts.append(
        f'<rect class="ground" x="16" y="{total - 48}" width="{WIDTH - 32}" height="36" rx="6"/>'
        f'<text class="text" x="{WIDTH / 2:.0f}" y="{total - 26}" text-anchor="middle">'
        f"used everywhere: {', '.join(GROUND[:-1])}</text></svg>\n"
    )
    return "\n".join(parts)


def _arrow(way: list[str], places: Mapping[str, tuple[float, float]]) -> str:
    path = ""
    for one, other in pairwise(way):
        x1, x2 = places[one][0] + width(one) / 2, places[other][0] + width(other) / 2
        y1, y2 = places[one][1] + BOX_HEIGHT, places[other][1]
        bend = (y2 - y1) / 2
        path += f"{'L' if path else 'M'}{x1:.0f} {y1:.0f}"
        path += f"C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
    return f'<path class="arrow" marker-end="url(#tip)" d="{path}"/>'


def _box(place: tuple[float, float], room: str, files: list[Path]) -> str:
    x, y = place
    inner = sorted({path.parent.name for path in files if path.parent.name not in {room, "versions"}})
    modules = sum(path.name != "__init__.py" for path in files)
    middle = x + BOX_WIDTH / 2
    lines = [("name", room), ("text", f"{modules} module{'s' if modules > 1 else ''}"), ("text", " ".join(inner))]
    words = "".join(
        f'<text class="{kind}" x="{middle:.0f}" y="{y + 20 + 17 * row:.0f}" text-anchor="middle">{escape(text)}</text>'
        for row, (kind, text) in enumerate(lines)
        if text
    )
    return f'<rect class="box" x="{x:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>{words}'


def main() -> int:
    """Write the drawing, or check it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the drawing in docs is out of date")
    drawing = draw()
    if parser.parse_args().check:
        if not DRAWING.is_file() or DRAWING.read_text() != drawing:
            print(f"{DRAWING.relative_to(ROOT)} is out of date: run `python tools/draw_rooms.py`", file=sys.stderr)
            return 1
        return 0
    DRAWING.write_text(drawing)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
