"""A live run and its simulation side by side, as in benchmarks/fidelity.py, with deadlines that are not close."""

from __future__ import annotations

import math
from dataclasses import replace
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


START_S = {"gpt2-base": 3.0, "gpt2-large": 5.0}


def test_simulation_agrees_with_the_live_run(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fidelity
    import fidelity_runs

    given = {llm: replace(one, start_s=START_S[llm], switch_s=0.5) for llm, one in stated(list(START_S)).items()}
    site = fidelity_runs.Site(gpus=4)
    live = fidelity_runs.run_live(slurm, tmp_path / "home", JOBS, given, site)
    assert all(math.isfinite(verdict.end_s) for verdict in live.verdicts.values()), "every job reached its target"
    sim = fidelity.Known.of(live, given).simulate(JOBS, site)
    out = fidelity.compare(JOBS, live, [sim])
    assert out["late_live"] >= 2 and out["agreement"] >= 0.75, out
    assert 0.5 < out["gpu_s_ratio"] < 2, out
    starts = {llm: seconds for (llm, kind), seconds in live.measured.items() if kind == "start"}
    assert 1 <= sum(len(seconds) for seconds in starts.values()) <= live.allocations
    for llm, seconds in starts.items():  # a paced model is never there sooner; submissions are timed to a tick's begin
        assert min(seconds) >= START_S[llm] - 1.0
    warm = [seconds for (_, kind), each in live.measured.items() if kind == "warm" for seconds in each]
    assert len(warm) == len(JOBS)
    assert min(warm) >= 0  # the spool delay is taken off: nothing may be left of a quick lease
