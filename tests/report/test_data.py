"""A report's data: verdicts, costs, usage over time, and its file."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.errors import DataError
from prompttuner.policy.registry import get
from prompttuner.profiles.load import stated
from prompttuner.report.data import JobBar, ReportData, Usage, load_data, save_data, steps
from prompttuner.report.simulated import from_simulation
from prompttuner.sim.options import SimOptions, SimResult
from prompttuner.sim.run import simulate
from prompttuner.trace.generate import Workload, generate
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple


@pytest.fixture(scope="module")
def simulated() -> tuple[list[TraceJob], SimResult, ReportData]:
    jobs = generate(Workload(gpus=8, load=0.8, length_s=1200, seed=2, slo=SloMultiple.parse("U(0.3,1.2)")))
    result = simulate(jobs, stated({job.llm for job in jobs}), get("edf"), SimOptions(gpus=8))
    return jobs, result, from_simulation(result, jobs, "generated")


def test_simulation_and_report_agree(simulated: tuple[list[TraceJob], SimResult, ReportData]) -> None:
    jobs, result, data = simulated
    assert data.verdicts()["missed"] == result.violations > 0
    assert sum(data.verdicts().values()) == len(jobs)
    assert sum(data.cost().values()) == pytest.approx(result.cost_s)
    assert sum(job.gpu_s for job in data.jobs) == pytest.approx(sum(job.gpu_s for job in result.jobs))
    by_outcome = {outcome.id: outcome for outcome in result.jobs}
    assert all(job.gpu_s == pytest.approx(by_outcome[job.id].gpu_s) for job in data.jobs)


def test_usage_adds_up_to_about_the_exact_cost(simulated: tuple[list[TraceJob], SimResult, ReportData]) -> None:
    """Usage is recorded once a tick, costs are counted at every event."""
    data = simulated[2]
    exact, data.held = sum(data.held.values()), {}
    try:
        assert sum(data.cost().values()) == pytest.approx(exact, rel=0.03)
    finally:
        data.held = {"busy": exact}


def test_saved_data_loads_equal(simulated: tuple[list[TraceJob], SimResult, ReportData], tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    save_data(path, simulated[2])
    assert load_data(path) == simulated[2]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "jobs": [{}]}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"log\.json"):
        load_data(path)
    with pytest.raises(DataError, match="cannot read"):
        load_data(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("state", "end", "deadline", "now", "verdict"),
    [
        ("ended", 9.0, 10.0, 20.0, "met"),
        ("ended", 11.0, 10.0, 20.0, "missed"),
        ("running", math.inf, 10.0, 9.0, "open"),
        ("running", math.inf, 10.0, 11.0, "missed"),
        ("rejected", math.inf, 10.0, 5.0, "missed"),
        ("failed", 3.0, 10.0, 5.0, "missed"),
        ("cancelled", 3.0, 10.0, 20.0, "open"),
        ("cancelled", 13.0, 10.0, 20.0, "missed"),
        ("ended", 9.0, math.inf, 20.0, "best effort"),
    ],
)
def test_verdicts(state: str, end: float, deadline: float, now: float, verdict: str) -> None:
    job = JobBar("a", "p", 0.0, end_s=end, deadline_s=deadline, state=state)
    assert job.verdict(now) == verdict


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 50), st.integers(0, 50), st.sampled_from(["busy", "starting", "idle"]), st.integers(1, 4)
        ),
        max_size=12,
    )
)
def test_steps_count_whoever_is_there(spans: list[tuple[int, int, str, int]]) -> None:
    spans = [(min(a, b), max(a, b), kind, n) for a, b, kind, n in spans]
    line = steps([c for a, b, kind, n in spans for c in ((float(a), kind, n), (float(b), kind, -n))])
    for at in range(51):
        there = [n for a, b, kind, n in spans if kind == "busy" and a <= at < b]
        shown = [usage.busy for usage in line if usage.at_s <= at]
        assert (shown[-1] if shown else 0) == sum(there)
    assert [u.at_s for u in line] == sorted({u.at_s for u in line})


def test_cost_follows_from_usage() -> None:
    data = ReportData("t", "s", 0, 10, [], [Usage(0, 2, 0, 1), Usage(4, 0, 3, 0)])
    assert data.cost() == {"busy": 8.0, "start-up": 18.0, "warm-idle": 4.0}
    assert json.dumps(data.cost())
