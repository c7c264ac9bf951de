"""The command line: ``main`` is the console script ``prompttuner``."""

from __future__ import annotations

import sys

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its code; nothing is imported before it is needed."""
    try:
        from prompttuner.cli.frame import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before, or after, the frame could catch it
        code = INTERRUPTED
    sys.exit(code)
