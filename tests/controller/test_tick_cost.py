"""What a tick asks the database and Slurm: the same few questions, however many jobs there are; few for each change."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from lab import Lab, scratch_root
from sqlalchemy import event

from prompttuner.controller.requests import leave
from prompttuner.protocol.requests import Cancel
from prompttuner.states import JobState

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


def burst(folder: Path, size: int) -> dict[str, int]:
    """Statements of the ticks in which ``size`` jobs come, get their GPUs, begin, and are cancelled, all at once."""
    counts: dict[str, int] = {}
    with Lab(folder, "prompttuner", local={"slots": size}, max_submissions_per_minute=600) as lab:
        lab.site.gpus = size
        seen: list[str] = []
        event.listen(lab.store.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))

        def tick(kind: str) -> list[str]:
            seen.clear()
            actions = lab.tick().actions
            counts[kind] = counts.get(kind, 0) + len(seen)
            return [action.partition(":")[0] for action in actions]

        ids = [lab.submit(ita=100, deadline_s=60.0, max_gpus=1) for _ in range(size)]
        assert tick("come").count("Request") == size
        actions: list[str] = []
        while "Assign" not in actions:
            lab.site.step(1.0)
            actions = tick("begin")
        assert actions.count("Assign") == size
        lab.site.step(1.0)
        lab.tick()
        for name in ids:
            leave(lab.settings, Cancel(job=name))
        tick("cancelled")
        assert {lab.job(name).state for name in ids} == {JobState.CANCELLED}
    return counts


def test_a_burst_of_jobs_costs_few_statements_for_each(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as few,
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as many,
    ):
        small, large = burst(Path(few), 4), burst(Path(many), 24)
    each = {kind: (large[kind] - small[kind]) / 20 for kind in large}
    # A request and a submission have transactions of their own; what a tick changes shares one.
    assert each["come"] <= 30
    assert each["begin"] <= 11
    assert each["cancelled"] <= 20
