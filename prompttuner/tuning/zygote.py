"""Former name of the zygote: an agent that was started before an upgrade restarts its zygote by this name."""

from __future__ import annotations

import sys

from prompttuner.worker.zygote.server import main

__all__ = ["main"]

if __name__ == "__main__":
    main(int(sys.argv[1]))
