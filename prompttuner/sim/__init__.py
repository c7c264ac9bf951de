"""The simulator: policies against a site in virtual time."""

from __future__ import annotations

from prompttuner.sim.options import JobOutcome, SimOptions, SimResult
from prompttuner.sim.run import simulate

__all__ = ["JobOutcome", "SimOptions", "SimResult", "simulate"]
