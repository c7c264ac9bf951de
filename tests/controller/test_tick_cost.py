"""A tick that has nothing to decide asks the database and Slurm the same few questions, however many jobs there are."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from lab import scratch_root

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "tick.py"


@pytest.fixture(scope="module")
def benchmark_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tick_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_statements_and_calls_do_not_grow_with_the_number_of_jobs(
    benchmark_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(scratch_root(tmp_path)))
    few, many = (benchmark_module.measure(known, 3) for known in (100, 10_000))
    for kind, most in (("idle", 10), ("beats", 20), ("all", 20)):
        assert few[kind]["statements"] == many[kind]["statements"] <= most, kind
        assert few[kind]["manager_calls"] == many[kind]["manager_calls"] == 1.0, kind
