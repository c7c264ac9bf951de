"""The command line: ``main`` is the console script ``prompttuner``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code; nothing is imported before it is needed."""
    from prompttuner.cli.frame import run

    sys.exit(run(sys.argv[1:]))
