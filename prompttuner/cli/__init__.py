"""The command line: ``main`` is the console script ``prompttuner``."""

from __future__ import annotations

import sys

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its code; nothing is imported before it is needed."""
    try:
        from prompttuner.cli.frame.root import run

        code = run(sys.argv[1:])
        _ignore_ctrl_c()
    except KeyboardInterrupt:  # before, or after, the frame could catch it
        _ignore_ctrl_c()
        code = INTERRUPTED
    sys.exit(code)


def _ignore_ctrl_c() -> None:
    """All is done and said: one more Ctrl-C while Python winds up would only hide the exit code."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
