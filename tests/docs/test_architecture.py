"""What docs/architecture.md says of the house is so: the drawing, the size of rooms, and every step of the walks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
MOST_MODULES = 15
STEP = re.compile(r"\| `(?P<file>[\w/]+\.py)` \| `(?P<name>[\w.]+)` \|")


def walks() -> dict[str, list[tuple[str, str]]]:
    """Title of each walk -> its steps: (file, function or method)."""
    text = PAGE.read_text()
    assert "## Four walks" in text, "docs/architecture.md has lost its walks"
    section = text.split("## Four walks", 1)[1].split("\n## ", 1)[0]
    parts = re.split(r"^### ", section, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0]: [(m["file"], m["name"]) for m in STEP.finditer(part)] for part in parts}


def definitions(tree: ast.AST, above: str = "") -> Iterator[tuple[str, ast.AST]]:
    """(dotted name, node) of every class and function of a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{above}{node.name}"
            yield name, node
            yield from definitions(node, f"{name}.")


def test_there_are_four_walks_of_some_length() -> None:
    found = walks()
    assert len(found) == 4
    assert all(len(steps) >= 4 for steps in found.values()), found


@pytest.mark.parametrize("title", walks())
def test_every_step_of_a_walk_is_a_function_that_exists(title: str) -> None:
    missing = [
        f"{file}: {name}"
        for file, name in walks()[title]
        if not (ROOT / file).is_file() or name not in dict(definitions(ast.parse((ROOT / file).read_text())))
    ]
    assert missing == []


def test_the_drawing_of_the_rooms_shows_the_imports_of_today() -> None:
    command = [sys.executable, str(ROOT / "tools" / "draw_rooms.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_room_holds_more_than_fifteen_modules() -> None:
    folders = [ROOT / "prompttuner", *(ROOT / name for name in ("bank", "db", "slurm", "sbatch_templates"))]
    crowded = {
        str(folder.relative_to(ROOT)): count
        for top in folders
        for folder in [top, *(path for path in top.rglob("*") if path.is_dir() and not path.is_symlink())]
        if (count := sum(path.name != "__init__.py" for path in folder.glob("*.py"))) > MOST_MODULES
    }
    assert crowded == {}
