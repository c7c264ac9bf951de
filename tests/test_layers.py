"""Imports run one way, and packages are imported under one name only."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prompttuner"
LINKED = {"bank", "db", "slurm", "sbatch_templates"}
HEAVY = {"torch", "transformers", "peft", "accelerate"}
TENSOR_PACKAGES = {"engine", "worker", "bank", "smallmodel"}

BASE = {"errors", "files", "states", "protocol", "spec", "config", "smallmodel", "words"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "words": set(),
    "files": {"errors"},
    "states": {"errors"},
    "protocol": {"errors", "files"},
    "spec": {"errors", "files", "protocol", "smallmodel"},
    "config": {"errors", "files", "protocol", "spec"},
    "smallmodel": {"errors", "files"},
    "realmodel": {"errors", "files"},
    "policy": {"errors", "words"},
    "profiles": {"errors", "files", "policy"},
    "trace": {"errors", "files", "policy", "profiles", "slurm", "words"},
    "sim": {"errors", "files", "policy", "profiles", "trace", "words"},
    "engine": BASE,
    "bank": {*BASE, "engine"},
    "worker": {*BASE, "bank", "engine"},
    "tuning": {"worker"},  # former names, kept for one release
    "db": BASE,
    "sbatch_templates": BASE,
    "slurm": {*BASE, "worker", "sbatch_templates"},
    "report": {*BASE, "db", "sim", "trace"},
    "client": {*BASE, "controller", "db", "slurm"},
    "controller": {*BASE, "bank", "db", "policy", "profiles", "slurm", "trace", "worker"},
}
"""What each layer may import of prompttuner, at the top of a file or within functions. The command line and the Python
API are above all of them."""


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at the top of the file) of every import; annotations-only imports are left out."""
    tree = ast.parse(path.read_text(), str(path))
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
                found.append((child.module, top))
                found.extend((f"{child.module}.{alias.name}", top) for alias in child.names)
            visit(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(tree, True)
    return found


def sources() -> Iterator[tuple[str, Path]]:
    """(layer, file) of every file of the package; the layer is the first name below ``prompttuner``."""
    for entry in sorted(PACKAGE.iterdir()):
        if entry.is_dir():
            for path in sorted(entry.resolve().rglob("*.py")):
                yield entry.name, path
        elif entry.suffix == ".py":
            yield entry.stem, entry


def layers_of(path: Path) -> set[str]:
    """Layers that a file imports, anywhere in it."""
    return {name.split(".")[1] for name, _ in imports(path) if name.startswith("prompttuner.")}


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_a_layer_imports_only_those_below_it(layer: str) -> None:
    files = [path for name, path in sources() if name == layer]
    assert files, f"there is no layer {layer}"
    allowed = ALLOWED[layer] | {layer, "__version__"}
    wrong = {f"{path.relative_to(ROOT)} imports {other}" for path in files for other in layers_of(path) - allowed}
    assert wrong == set()


def test_the_layers_have_an_order() -> None:
    order = tuple(TopologicalSorter(ALLOWED).static_order())  # raises CycleError, with the circle, if there is none
    assert {layer for layer, _ in sources()} - {"__init__", "api", "cli"} <= set(order)


def test_nothing_but_the_command_line_imports_the_command_line() -> None:
    wrong = {str(path) for layer, path in sources() if layer != "cli" and "cli" in layers_of(path)}
    assert wrong == set()


def test_tensors_stay_in_the_packages_that_handle_them() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name} at its top"
        for layer, path in sources()
        if layer not in TENSOR_PACKAGES
        for name, top in imports(path)
        if top and name.split(".")[0] in HEAVY
    }
    assert wrong == set()


def test_policies_and_simulator_know_neither_slurm_nor_database_nor_torch() -> None:
    forbidden = {*HEAVY, "sqlalchemy", "submitit", "subprocess"}
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for layer, path in sources()
        if layer in {"policy", "sim"}
        for name, _ in imports(path)
        if name.split(".")[0] in forbidden
    }
    assert wrong == set()


def test_linked_packages_are_never_imported_under_a_second_name() -> None:
    folders = [*(PACKAGE / name for name in LINKED), PACKAGE, ROOT / "tests", ROOT / "benchmarks", ROOT / "examples"]
    files = {path for folder in folders if folder.exists() for path in folder.resolve().rglob("*.py")}
    assert len(files) > 20
    wrong = {str(path) for path in files for name, _ in imports(path) if name.split(".")[0] in LINKED}
    assert wrong == set()


def test_linked_packages_are_relative_links() -> None:
    for name in LINKED:
        link = PACKAGE / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"


def modules() -> dict[str, Path]:
    """Every module of the package, by name."""
    found: dict[str, Path] = {}

    def walk(folder: Path, prefix: str) -> None:
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and (entry / "__init__.py").exists():
                walk(entry.resolve(), f"{prefix}.{entry.name}")
            elif entry.suffix == ".py":
                found[prefix if entry.stem == "__init__" else f"{prefix}.{entry.stem}"] = entry

    walk(PACKAGE, "prompttuner")
    return found


def imported(path: Path, known: Mapping[str, Path]) -> set[str]:
    """Modules that a file imports anywhere: at its top, inside functions, and for annotations alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names.update(name if name in known else node.module for name in deeper.values())
    return names & known.keys()


def test_no_imports_go_in_a_circle_not_even_those_for_annotations() -> None:
    known = modules()
    left = {name: imported(path, known) - {name} for name, path in known.items()}
    assert sum(map(len, left.values())) > 500
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert sorted(left) == [], "these import each other, or one that does"
