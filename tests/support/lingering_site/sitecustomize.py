"""On the PYTHONPATH of a controller's agents: their zygotes, and so the workers, linger (see lingering.py)."""

import os
import sys

if "prompttuner.worker.zygote.server" in sys.orig_argv:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

    from lingering import linger

    linger(int(os.environ["PROMPTTUNER_TEST_LINGER"]))
    del sys.path[0]
