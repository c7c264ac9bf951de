"""Our ElasticFlow in its own time model against the figures that its released simulator prints."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from prompttuner.trace.importers.elasticflow import import_elasticflow, read_throughputs, speedups_of
from prompttuner.trace.job import TraceJob

PATH = Path(__file__).parents[2] / "benchmarks" / "elasticflow_original.py"
SPEC = importlib.util.spec_from_file_location("elasticflow_original", PATH)
ORIGINAL = importlib.util.module_from_spec(SPEC)
sys.modules["elasticflow_original"] = ORIGINAL  # dataclasses look their module up
SPEC.loader.exec_module(ORIGINAL)
simulate_elasticflow = ORIGINAL.simulate_elasticflow
TRACES = Path(os.environ.get("PROMPTTUNER_TRACES", "")) / "elasticflow"
needs_traces = pytest.mark.skipif(
    not os.environ.get("PROMPTTUNER_TRACES") or not (TRACES / "195job.csv").exists(),
    reason="PROMPTTUNER_TRACES names no folder with elasticflow/195job.csv",
)
LINEAR = {"m": ((1, 1.0), (2, 2.0), (4, 4.0))}


@needs_traces
@pytest.mark.parametrize(
    ("gpus", "fixed", "met", "gpu_hours"),
    [
        (64, False, 137, 7447),
        (128, False, 146, 9996),
        (256, False, 148, 13236),
        (512, False, 148, 15005),
        (64, True, 162, None),
        (128, True, 175, None),
        (512, True, 182, None),
    ],
)
def test_195job_within_five_per_cent_of_the_released_simulator(
    gpus: int, fixed: bool, met: int, gpu_hours: float | None
) -> None:
    throughputs = read_throughputs(TRACES / "throughputs_A100")
    jobs = import_elasticflow(TRACES / "195job.csv", throughputs).require_clean().jobs
    result = simulate_elasticflow(jobs, gpus, speedups_of(throughputs), slot_s=240.0, fixed=fixed)
    assert len(result.met) + len(result.late) + len(result.rejected) == len(jobs) == 195
    assert len(result.met) == pytest.approx(met, rel=0.05)
    if gpu_hours is not None:
        assert result.gpu_s / 3600 == pytest.approx(gpu_hours, rel=0.05)


def test_one_job_alone_gets_all_gpus_for_whole_slots() -> None:
    job = TraceJob("a", 1000.0, "m", 900.0, 1.0, deadline_s=2000.0, max_gpus=4)
    result = simulate_elasticflow([job], 4, LINEAR, slot_s=240.0)
    assert (result.met, result.rejected) == (["a"], [])
    # 225 s on 4 GPUs; a slot of 240 s, and 2 + 2 (log2 4 + 1) s of overhead
    assert result.gpu_s == pytest.approx(4 * (240 + 8))


def test_what_cannot_be_met_is_rejected_with_the_rest_of_its_slot() -> None:
    jobs = [
        TraceJob("first", 0.0, "m", 100.0, 1.0, deadline_s=500.0),
        TraceJob("good", 10.0, "m", 100.0, 1.0, deadline_s=900.0),
        TraceJob("bad", 20.0, "m", 9000.0, 1.0, deadline_s=600.0),
    ]
    released = simulate_elasticflow(jobs, 4, LINEAR, slot_s=60.0)
    assert (released.met, released.rejected) == (["first"], ["good", "bad"])
    fixed = simulate_elasticflow(jobs, 4, LINEAR, slot_s=60.0, fixed=True)
    assert (sorted(fixed.met), fixed.rejected) == (["first", "good"], ["bad"])
