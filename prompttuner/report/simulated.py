"""A simulation's log as a report's data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prompttuner.report.data import JobBar, ReportData, Usage, busy_by_pool
from prompttuner.sim.options import JobOutcome, SimResult
from prompttuner.trace.job import TraceJob
from prompttuner.words import Counted

__all__ = ["from_simulation"]


def from_simulation(
    result: SimResult, trace: Sequence[TraceJob], source: str = "", facts: dict[str, str] | None = None
) -> ReportData:
    """Fill a report from ``simulate``'s result and the trace it ran.

    Args:
        source: what the trace is (a file's name, a generator's settings).
        facts: further lines of the summary, such as the bound.
    """
    pools = {job.id: job.llm for job in trace}
    tasks = {job.id: job.task for job in trace}
    spans: dict[str, list[tuple[float, float, int]]] = {}
    for name, begin, end, gpus in result.spans:
        spans.setdefault(name, []).append((begin, end, gpus))
    bars = [_bar(outcome, pools, tasks, sorted(spans.get(outcome.id, []))) for outcome in result.jobs]
    return ReportData(
        title=f"Simulation: {result.policy} on {Counted(result.gpus, 'GPU')}",
        source=source or "a trace in memory",
        begin_s=0.0,
        end_s=max([result.end_s, *(outcome.submit_s for outcome in result.jobs)], default=0.0),
        jobs=bars,
        usage=[Usage(*row) for row in result.usage],
        gpus=result.gpus,
        pool_usage=busy_by_pool(bars),
        held={"busy": result.busy_s, "start-up": result.startup_s, "warm-idle": result.idle_s},
        facts={"Policy": result.policy, "Allocations": str(result.allocations), **(facts or {})},
    )


def _bar(
    outcome: JobOutcome, pools: dict[str, str], tasks: dict[str, str], spans: list[tuple[float, float, int]]
) -> JobBar:
    state = "ended" if math.isfinite(outcome.end_s) else "failed"
    state = "rejected" if outcome.rejected else "stopped" if outcome.stopped else state
    notes = [str(Counted(outcome.resizes, "resize"))] * bool(outcome.resizes)
    notes += ["looked up"] * outcome.looked_up + ["demoted"] * outcome.demoted
    return JobBar(
        id=outcome.id,
        pool=pools.get(outcome.id, ""),
        submit_s=outcome.submit_s,
        start_s=outcome.start_s,
        end_s=outcome.end_s,
        deadline_s=outcome.deadline_s,
        state=state,
        name=tasks.get(outcome.id, ""),
        spans=spans,
        note=", ".join(notes),
    )
