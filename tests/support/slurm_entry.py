"""What runs in an allocation where a test wants no agent: obeys its settings file."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

__all__ = ["main"]


def main(settings_path: str) -> str:
    """Sleep ``sleep`` seconds, or less if a file ``finish`` appears beside the settings.

    ``ignore_term`` does not listen to SIGTERM; a file ``started`` holds its process id.
    """
    path = Path(settings_path)
    orders = json.loads(path.read_text())
    handler = signal.SIG_IGN if orders.get("ignore_term") else signal.SIG_DFL
    signal.signal(signal.SIGTERM, handler)
    scratch = path.parent / ".started"
    scratch.write_text(str(os.getpid()))
    scratch.rename(path.parent / "started")
    until = time.monotonic() + orders.get("sleep", 0)
    while time.monotonic() < until and not (path.parent / "finish").exists():
        time.sleep(0.05)
    return "slept"
