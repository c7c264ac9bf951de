"""What a test has done, counted for whoever started it (benchmarks/soak.py): one JSON line a call."""

from __future__ import annotations

import os
from pathlib import Path

from prompttuner.files import append_line

__all__ = ["VARIABLE", "tally"]

VARIABLE = "PROMPTTUNER_TALLY"
"""Path of the file; without it nothing is counted."""


def tally(**counts: int) -> None:
    """Add to the counts; a name is what is counted."""
    if path := os.environ.get(VARIABLE):
        append_line(Path(path), counts)
