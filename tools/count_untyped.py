"""Counts mappings whose values have no type: ``dict[str, Any]``, ``Mapping[str, object]`` and their kin.

``python tools/count_untyped.py`` prints, by room, how many there are, how many in 1,000 lines, and how many of them are
in the signature of a function or method. Counted are annotations and type aliases, nested ones too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("prompttuner", "bank", "db", "slurm")
MAPPINGS = frozenset({"dict", "Mapping", "MutableMapping", "Dict", "defaultdict", "OrderedDict"})
LOOSE = frozenset({"Any", "object", "Json"})
"""Value types that say nothing. ``Json`` is our own name for what JSON can hold."""


@dataclass(frozen=True)
class Found:
    """One loose mapping in an annotation."""

    path: Path
    line: int
    in_signature: bool


def loose_mappings(node: ast.AST, aliases: frozenset[str] = frozenset()) -> Iterator[ast.AST]:
    """The loose mappings within an annotation; ``aliases`` are names that stand for one."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):  # an annotation in quotes
            try:
                inner = ast.parse(part.value, mode="eval").body
            except SyntaxError:
                continue
            for one in loose_mappings(inner, aliases):
                yield ast.copy_location(one, part)
        elif isinstance(part, ast.Name) and part.id in aliases:
            yield part
        elif isinstance(part, ast.Subscript) and _name(part.value) in MAPPINGS:
            values = part.slice.elts[-1] if isinstance(part.slice, ast.Tuple) else part.slice
            if _name(values) in LOOSE:
                yield part


def found_in(path: Path, source: str | None = None) -> list[Found]:
    """All loose mappings in the annotations of a file."""
    tree = ast.parse(path.read_text() if source is None else source)
    aliases = frozenset(_aliases(tree))
    places: dict[tuple[int, int], bool] = {}

    def note(annotation: ast.AST | None, in_signature: bool) -> None:
        for part in loose_mappings(annotation, aliases) if annotation is not None else ():
            place = (part.lineno, part.col_offset)  # type: ignore[attr-defined]
            places[place] = places.get(place, False) or in_signature

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            for argument in every:
                note(argument.annotation if argument is not None else None, True)
            note(node.returns, True)
        elif isinstance(node, ast.AnnAssign):
            note(node.annotation, False)
            if _name(node.annotation) == "TypeAlias":
                note(node.value, False)
        elif isinstance(node, ast.Assign | ast.ClassDef):
            for part in [node.value] if isinstance(node, ast.Assign) else node.bases:
                if isinstance(part, ast.Subscript | ast.BinOp):
                    note(part, False)
    return [Found(path, line, signed) for (line, _), signed in sorted(places.items())]


def _aliases(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and _name(node.annotation) == "TypeAlias" and node.value is not None:
            value, names = node.value, [node.target]
        elif isinstance(node, ast.Assign):
            value, names = node.value, node.targets
        else:
            continue
        if isinstance(value, ast.Subscript) and any(part is value for part in loose_mappings(value)):
            yield from (name.id for name in names if isinstance(name, ast.Name))


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def files() -> list[Path]:
    """All source files of the package, each once."""
    roots = [ROOT / room for room in ROOMS]
    return sorted({path.resolve() for root in roots for path in root.rglob("*.py") if "migrations" not in path.parts})


def room_of(path: Path) -> str:
    """The room that a file is in, such as ``controller`` or ``bank``."""
    parts = path.relative_to(ROOT).parts
    return parts[1].removesuffix(".py") if parts[0] == "prompttuner" else parts[0]


def main() -> None:
    """Print the table."""
    lines: dict[str, int] = {}
    found: dict[str, list[Found]] = {}
    for path in files():
        room = room_of(path)
        lines[room] = lines.get(room, 0) + len(path.read_text().splitlines())
        found.setdefault(room, []).extend(found_in(path))
    print(f"{'room':<20}{'lines':>8}{'loose':>8}{'in 1,000':>10}{'signatures':>12}")
    for room in sorted(found, key=lambda room: (-len(found[room]), room)):
        count, signed = len(found[room]), sum(one.in_signature for one in found[room])
        if count:
            print(f"{room:<20}{lines[room]:>8}{count:>8}{1000 * count / lines[room]:>10.1f}{signed:>12}")
    total, size = sum(map(len, found.values())), sum(lines.values())
    signed = sum(one.in_signature for part in found.values() for one in part)
    print(f"{'all':<20}{size:>8}{total:>8}{1000 * total / size:>10.1f}{signed:>12}")


if __name__ == "__main__":
    main()
