"""The comparison's page, results and definitions belong together."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result():
    return json.loads((BENCHMARKS / "results" / "policies.json").read_text())


def test_the_page_shows_the_committed_results():
    tables = load("policies_tables")
    page = tables.PAGE.read_text()
    assert tables.page_with(page, tables.made()) == page
    with pytest.raises(SystemExit, match="lacks the marks"):
        tables.page_with(page, {"unknown": ""})


def test_every_cell_has_its_figures(result):
    keys = {"violations", "unavoidable", "cost", "bound_cost", "bound_violations"}
    plain = [cell for cell in result["cells"] if not cell["variant"]]
    assert plain
    for cell in plain:
        assert all(cell[key] is not None for key in keys), cell


def test_no_cell_beats_its_bound(result):
    for cell in result["cells"]:
        if cell["bound_violations"] is not None:
            assert cell["unavoidable"] <= cell["bound_violations"] <= cell["violations"] <= cell["jobs"]
            assert cell["rejected"] or cell["cost"] >= cell["bound_cost"]


def test_windows_are_tuned_on_and_reported_on_apart():
    definitions = load("policies_definitions")
    tuning, report = ({window.number for window in part} for part in (definitions.TUNING, definitions.REPORT))
    assert len(tuning) == len(report) == 5 and not tuning & report
    assert len(set(definitions.SEEDS)) >= 5


def test_bank_factors_are_those_measured():
    definitions = load("policies_definitions")
    measured = definitions.measured_factors()
    mid, high = definitions.bank_prior()
    assert len(measured) >= 12 and 0 < mid <= high <= 1
    jobs = definitions.generate(definitions.Workload(gpus=4, seed=1))
    assert {job.bank_factor for job in definitions.with_bank(jobs, 3)} <= set(measured.tolist())
    weaker = {job.bank_factor for job in definitions.with_bank(jobs, 3, weaker=True)}
    assert not weaker <= set(measured.tolist())
