"""The fidelity benchmark's own arithmetic, and the jobs that it measures a site with."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prompttuner import policy as policies
from prompttuner.policy.contract.plan import Plan, Release, SwitchModel
from prompttuner.policy.contract.snapshot import Snapshot
from prompttuner.profiles import stated
from prompttuner.sim import SimResult
from prompttuner.sim.options import JobOutcome
from prompttuner.trace.job import TraceJob

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LLMS = ["gpt2-base", "gpt2-large"]


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fidelity

    return fidelity


def simulation(cost: float, *ends: float) -> SimResult:
    jobs = [JobOutcome(f"j{i}", 0.0, 10.0, end_s=end) for i, end in enumerate(ends)]
    return SimResult("test", 4, jobs, busy_s=cost, allocations=2)


def test_the_verdict_of_most_simulations_counts_and_their_mean_cost(fidelity: ModuleType) -> None:
    from fidelity_runs import LiveRun, Verdict

    trace = [TraceJob(f"j{i}", 0.0, "gpt2-base", 10, 1.0, deadline_s=10.0) for i in range(3)]
    ends = {"j0": 9.0, "j1": 9.5, "j2": math.inf}
    verdicts = {name: Verdict(end, end <= 10.0) for name, end in ends.items()}
    live = LiveRun(verdicts, {"busy": 90.0, "start-up": 10.0, "warm-idle": 0.0}, {}, 0, 2, [], 0.0)
    sims = [
        simulation(80.0, 9.0, 12.0, 11.0),
        simulation(110.0, 9.0, 12.5, 9.0),
        simulation(140.0, 12.0, 9.0, math.inf),
    ]
    out = fidelity.compare(trace, live, sims)
    assert (out["late_live"], out["late_sim"], out["gpu_s_ratio"]) == (1, 2, 1.1)
    assert out["gpu_s_sim_least_most"] == [80.0, 140.0]
    (differs,) = out["disagreements"]
    assert (differs["job"], differs["live_late_s"], differs["sim_late_s"]) == ("j1", -0.5, 2.0)
    assert differs["sims_late"] == 0.67 and out["agreement"] == 0.6667
    assert out["late_s"]["j2"] == [None, 1.0]
    assert fidelity.chance(sims) == pytest.approx(2 / 3, abs=1e-4)
    assert fidelity.pooled([out, out]) == {
        "jobs": 6, "late_live": 2, "late_sim": 4, "agreement": 0.6667, "gpu_s_ratio": 1.1
    }  # fmt: skip


def test_what_a_controller_has_learned_replaces_what_is_stated(fidelity: ModuleType) -> None:
    from fidelity_times import believed, profiles_with

    given = stated(LLMS)
    rows = [{"model": "/m/gpt2-large", "kind": "switch", "seconds": 11.0, "origin": "controller"}]
    told = believed(rows, given)
    assert told["gpt2-large"].switch_s == 11.0 and told["gpt2-large"].start_s == given["gpt2-large"].start_s
    assert told["gpt2-base"] == given["gpt2-base"]
    samples = {("gpt2-base", "start"): [11.0, 13.0], ("gpt2-base", "resize"): [0.5], ("gpt2-base", "release"): [0.3]}
    measured = profiles_with(samples, given)
    assert (measured["gpt2-base"].start_s, measured["gpt2-large"].start_s) == (12.0, given["gpt2-large"].start_s)
    assert measured["gpt2-large"].resize_s == 0.5  # the site's, not an LLM's own


def test_the_jobs_that_measure_a_site_bring_about_all_that_is_measured(fidelity: ModuleType) -> None:
    from fidelity_runs import POLICY, Site, simulated

    seen: Counter[Any] = Counter()
    inner = policies.get(POLICY)

    class Watch:
        name = inner.name

        def plan(self, snapshot: Snapshot) -> Plan:
            plan = inner.plan(snapshot)
            seen.update(("switch", action.pool) for action in plan.actions if isinstance(action, SwitchModel))
            seen["release"] += sum(isinstance(action, Release) for action in plan.actions)
            return plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "get", lambda _: Watch())
        profiles = {llm: replace(one, queue_s=0.5, warm_s=0.1, resize_s=0.1) for llm, one in stated(LLMS).items()}
        result = simulated(fidelity.calibration(), profiles, Site())
    assert result.allocations == 4
    assert sum(job.resizes for job in result.jobs) >= 3
    assert seen["switch", 0] >= 1 and seen["switch", 1] >= 1
    assert seen["release"] >= 2
