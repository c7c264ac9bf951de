"""How many examples property tests try, and which: the same ones in every CI run, new ones elsewhere."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from no_skips import strict

__all__ = ["load_profile"]


def load_profile() -> None:
    """No time limits: a busy machine is no error of the code under test."""
    settings.register_profile(
        "prompttuner",
        deadline=None,
        derandomize=strict(),
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("prompttuner")
