"""The committed results of the policy comparison: one CSV line a cell, and a JSON file that says how it was made."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

__all__ = ["CELLS", "HOW", "Made", "load", "save"]

CELLS = Path(__file__).parent / "results" / "policies.csv"
HOW = CELLS.with_suffix(".json")
Row: TypeAlias = dict[str, str | int | float | bool]
TEXT = ("trace", "policy", "label", "variant", "slo")
WHOLE = ("gpus", "window", "seed", "jobs", "violations", "rejected", "unavoidable", "bound_violations")
REAL = ("load", "cost", "busy", "startup", "idle", "cluster_cost", "bound_cost", "cpu_s")
COLUMNS = (*TEXT[:2], "bank", *TEXT[2:], *WHOLE, *REAL)


@dataclass(frozen=True, slots=True)
class Made:
    """How the results were made."""

    command: str
    policy: str
    """Commit of the policy that is compared."""
    date: str
    cores: int
    load_average: float
    """Processes that ran on these cores (15 minutes' mean at the end), other people's too."""
    wall_s: float | None
    """None where cells came from a cache."""
    cpu_s: int
    """Sum over all cells."""
    checked: int
    """Cells from a cache that were computed again and found equal."""
    workload: str
    bank: str

    def as_dict(self) -> dict[str, str | int | float | None]:
        """Plain values."""
        return asdict(self)


def save(rows: Sequence[Row], made: Made) -> None:
    """Write both files. Figures are rounded to what the tables can show: whole GPU-seconds."""
    with CELLS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _text(key, value) for key, value in row.items()})
    HOW.write_text(json.dumps(made.as_dict(), indent=1) + "\n")


def load() -> tuple[list[Row], Made]:
    """What ``save`` wrote; figures that a cell does not have are left out."""
    with CELLS.open() as file:
        rows = [
            {key: _value(key, text) for key, text in row.items() if text or key in TEXT} for row in csv.DictReader(file)
        ]
    return rows, Made(**json.loads(HOW.read_text()))


def _text(key: str, value: str | int | float | bool) -> str:
    if key == "bank":
        return "yes" if value else "no"
    return (
        str(round(value)) if key in REAL and key not in ("load", "cpu_s") and isinstance(value, float) else str(value)
    )


def _value(key: str, text: str) -> str | int | float | bool:
    if key == "bank":
        return text == "yes"
    return text if key in TEXT else int(text) if key in WHOLE else float(text)
