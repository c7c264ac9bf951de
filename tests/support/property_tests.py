"""How many examples property tests try, and which: the same ones in every CI run, new ones elsewhere."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
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
    if strict():
        _draw_nothing_from_modules()


def _draw_nothing_from_modules() -> None:
    """Hypothesis also tries constants of our modules that are imported by then: those that other tests happened to
    import before in the same process, so that even derandomized examples would differ from run to run."""
    assert callable(providers._get_local_constants)  # its name in the version that constraints.txt pins
    providers._get_local_constants = providers.Constants
