"""`prompttuner run` whose ticks can be watched from outside: a test can kill it within one."""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

__all__ = ["TickWatch", "command"]

_COUNTS = struct.Struct("=QQ")
"""Ticks begun and ticks ended. The kernel keeps what a killed process wrote to its map."""


class TickWatch:
    """Ticks of a controller started by :func:`command`, as its file tells them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begun(self) -> int:
        return self._counts()[0]

    def in_tick(self) -> bool:
        """Whether a tick is going on, or was when the controller was killed."""
        begun, ended = self._counts()
        return begun > ended

    def wait_for_tick(self, patience_s: float) -> bool:
        """Until a tick is going on; False if none was within ``patience_s`` seconds."""
        deadline = time.monotonic() + patience_s
        while not self.in_tick():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def _counts(self) -> tuple[int, int]:
        try:
            return _COUNTS.unpack(self.path.read_bytes())
        except (OSError, struct.error):
            return 0, 0


def command(watch: TickWatch) -> list[str]:
    """What to start instead of `prompttuner`."""
    return [sys.executable, __file__, str(watch.path)]


def _main() -> None:
    from prompttuner.cli import main
    from prompttuner.controller.tick import Controller
    from prompttuner.controller.tick_report import TickReport

    path = Path(sys.argv.pop(1))
    begun = TickWatch(path).begun()
    path.write_bytes(_COUNTS.pack(begun, begun))
    with path.open("r+b") as file:
        counts = mmap.mmap(file.fileno(), _COUNTS.size)
    tick = Controller.tick

    def watched(controller: Controller) -> TickReport:
        nonlocal begun
        begun += 1
        _COUNTS.pack_into(counts, 0, begun, begun - 1)
        try:
            return tick(controller)
        finally:
            _COUNTS.pack_into(counts, 0, begun, begun)

    Controller.tick = watched
    main()


if __name__ == "__main__":
    _main()
