"""A live run and its simulation side by side, as in benchmarks/fidelity.py, with deadlines that are not close."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from slurm_cluster import Cluster

from prompttuner.profiles import stated
from prompttuner.trace.job import TraceJob

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
JOBS = [
    TraceJob(f"f{i}", 1.0 * i, ("gpt2-base", "gpt2-large")[i % 2], iters=30, step_s=0.2, max_gpus=2,
             deadline_s=i + (2.0 if i % 4 == 0 else 200.0))
    for i in range(8)
]  # fmt: skip
"""Six seconds each; two seconds are too few for every fourth, 200 enough for the others."""


def test_simulation_agrees_with_the_live_run(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fidelity
    import fidelity_runs

    site, given = fidelity_runs.Site(gpus=4), stated(["gpt2-base", "gpt2-large"])
    live = fidelity_runs.run_live(slurm, tmp_path / "home", JOBS, given, site)
    assert all(math.isfinite(verdict.end_s) for verdict in live.verdicts.values()), "every job reached its target"
    sim = fidelity_runs.simulated(JOBS, fidelity_runs.profiles_with(live.measured, given), site)
    out = fidelity.compare(JOBS, live, sim)
    assert out["late_live"] >= 2 and out["agreement"] >= 0.75, out
    assert 0.5 < out["gpu_s_ratio"] < 2, out
    assert live.samples["start"] == live.allocations >= 1 and live.measured["warm"] > 0
