"""Lower bounds that no schedule can beat: unavoidable violations, least work, and a linear program.

The program is the relaxation of the time-indexed formulation (Dyer & Wolsey 1990) of maximising jobs in time, with
malleable jobs: ``x[j, k, t]`` seconds of slot t during which job j holds the k-th size of its speed-up hull, and
``y[j]`` in [0, 1], whether it is in time.

    maximise    sum y[j]
    subject to  sum over k, t of rate[j, k] x[j, k, t]  =  work[j] y[j]            each job
                sum over k of x[j, k, t]  <=  overlap[j, t] y[j]                   each job and slot
                sum over j, k of size[j, k] x[j, k, t]  <=  gpus x length[t]       each slot

``overlap`` is the time that slot t shares with [submit, deadline], so that any grid, however coarse, is a relaxation
of any schedule. So are fractional GPUs, free preemption and resizing. Start-up and lookups cost nothing unless
``Overheads`` says otherwise. Jobs that miss alone on all GPUs have y = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array, vstack

from prompttuner.errors import PromptTunerError, SpecError
from prompttuner.sim.rates import Hull, Speedup, hull_of
from prompttuner.trace.job import TraceJob

__all__ = ["Bound", "Overheads", "bound", "least_cost"]

Floats = NDArray[np.float64]
TOLERANCE = 1e-6
DEFAULT_SLOTS = 200
INTERIOR_POINT_COLUMNS = 30_000


@dataclass(frozen=True, slots=True)
class Bound:
    """What no schedule of these jobs on this many GPUs can beat."""

    jobs: int
    with_deadline: int
    unavoidable: int
    """Jobs that miss alone, warm, on the most GPUs they may use."""
    violations: int
    """No schedule has fewer; at least ``unavoidable``."""
    violations_lp: float
    """The same before rounding up."""
    work_gpu_s: float
    """Sum of each job's least GPU-seconds: no schedule that ends all jobs costs less."""
    unavoidable_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds that no schedule of a comparison can avoid; 0 is always valid, more makes the bound tighter."""

    start_s: float = 0.0
    """From a job's submission to its first step or lookup on a warm GPU."""
    lookup_s: float = 0.0
    """A lookup, where the bank is used at all; the GPUs held meanwhile do nothing else."""


NO_OVERHEADS = Overheads()


@dataclass(frozen=True, slots=True)
class _Demand:
    job: TraceJob
    from_s: float
    """No step is done before."""
    work_s: float
    hull: Hull
    hopeless: bool

    @property
    def least_gpu_s(self) -> float:
        return self.work_s * self.hull.least_gpu_s


@dataclass(slots=True)
class _Program:
    """Columns: all x, then one y a demand. Rows in the order of the module's text."""

    demands: list[_Demand]
    cost: Floats
    """GPU-seconds of one unit of each column (x only), shape (columns,)."""
    matrix: csr_array
    low: Floats
    high: Floats

    @property
    def columns(self) -> int:
        return len(self.cost)


def bound(
    jobs: Sequence[TraceJob],
    gpus: int,
    speedups: Mapping[str, Speedup],
    *,
    bank: bool,
    overheads: Overheads = NO_OVERHEADS,
    slots: int = DEFAULT_SLOTS,
    mip_s: float = 0.0,
) -> Bound:
    """Lower bounds for one window.

    Args:
        speedups: by ``TraceJob.llm``, as ``PoolProfile.speedup``.
        bank: count each job's iterations after a lookup, where that is fewer, instead of from the default prompt.
        overheads: what every schedule to be compared pays for each job at the least.
        slots: slots of the time grid at most; more is tighter and slower, any number is valid.
        mip_s: seconds for tightening the bound by branch and bound (a valid bound whenever it is stopped).

    Raises:
        SpecError: an LLM without speed-up, or a job that needs more GPUs than there are.
    """
    demands = [_demand(job, gpus, speedups, bank, overheads) for job in jobs]
    urgent = [demand for demand in demands if not demand.job.best_effort]
    hopeless = tuple(demand.job.id for demand in urgent if demand.hopeless)
    hopeful = [demand for demand in urgent if not demand.hopeless]
    missed = _least_missed(hopeful, gpus, slots, mip_s) if hopeful else 0.0
    return Bound(
        jobs=len(jobs),
        with_deadline=len(urgent),
        unavoidable=len(hopeless),
        violations=len(hopeless) + max(0, math.ceil(missed - TOLERANCE * max(1, len(hopeful)))),
        violations_lp=len(hopeless) + missed,
        work_gpu_s=float(sum(demand.least_gpu_s for demand in demands)),
        unavoidable_ids=hopeless,
    )


def least_cost(
    jobs: Sequence[TraceJob],
    gpus: int,
    speedups: Mapping[str, Speedup],
    *,
    bank: bool,
    violations: int,
    overheads: Overheads = NO_OVERHEADS,
    slots: int = DEFAULT_SLOTS,
) -> float:
    """GPU-seconds below which no schedule ends all jobs with at most ``violations`` of them late.

    inf when no schedule has so few violations. Late jobs are taken at their least GPU-seconds.

    Raises:
        SpecError: as ``bound``.
    """
    demands = [_demand(job, gpus, speedups, bank, overheads) for job in jobs]
    hopeful = [d for d in demands if not d.job.best_effort and not d.hopeless]
    unavoidable = sum(1 for d in demands if not d.job.best_effort and d.hopeless)
    allowed = violations - unavoidable
    floor = float(sum(d.least_gpu_s for d in demands))
    if allowed < 0:
        return math.inf
    if allowed >= len(hopeful):
        return floor
    program = _program(hopeful, gpus, slots)
    # met: GPU-seconds held; missed: the least; so a job's least is paid for, and taken off with y
    objective = program.cost.copy()
    first_y = program.columns - len(hopeful)
    objective[first_y:] = [-d.least_gpu_s for d in hopeful]
    value = _solve(program, objective, at_least_met=len(hopeful) - allowed - TOLERANCE)
    return math.inf if value is None else max(floor, (floor + value) * (1 - TOLERANCE))


def _demand(job: TraceJob, gpus: int, speedups: Mapping[str, Speedup], bank: bool, overheads: Overheads) -> _Demand:
    if job.llm not in speedups:
        raise SpecError(f"job {job.id!r}: no speed-up profile for {job.llm!r} (known: {', '.join(sorted(speedups))})")
    try:
        hull = hull_of(speedups[job.llm], job.min_gpus, min(job.max_gpus, gpus))
    except SpecError as error:
        raise SpecError(f"job {job.id!r} {error}") from None
    plain = job.work_s
    after = job.work_s * job.bank_factor if bank else math.inf
    start = job.submit_s + overheads.start_s
    alone = start + min(plain / hull.top_rate, overheads.lookup_s + after / hull.top_rate)
    # a lookup of L seconds, whatever the GPUs held meanwhile, could in the program do L one-GPU seconds of work
    work = min(plain, after + overheads.lookup_s * min(1.0, hull.rate[0]))
    return _Demand(job, start, float(work), hull, alone > job.deadline_s * (1 + 1e-12) + 1e-9)


def _least_missed(demands: list[_Demand], gpus: int, slots: int, mip_s: float) -> float:
    program = _program(demands, gpus, slots)
    objective = np.zeros(program.columns)
    objective[program.columns - len(demands) :] = -1.0
    best = _solve(program, objective)
    missed = len(demands) + (best if best is not None else -math.inf)
    if mip_s > 0 and missed > TOLERANCE * len(demands):
        missed = max(missed, len(demands) + _branch(program, objective, mip_s))
    return max(0.0, missed)


def _grid(demands: list[_Demand], slots: int) -> Floats:
    """Slot edges at submits and deadlines; every k-th where there are too many of them."""
    events = np.unique([t for d in demands for t in (d.from_s, d.job.deadline_s)])
    if len(events) <= slots + 1:
        return events
    return np.asarray(events[np.unique(np.linspace(0, len(events) - 1, slots + 1).round().astype(int))])


def _program(demands: list[_Demand], gpus: int, slots: int) -> _Program:
    edges = _grid(demands, slots)
    lengths = np.diff(edges)
    n = len(demands)
    data: list[Floats] = []
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    costs: list[Floats] = []
    used_columns, used_rows = 0, n
    y_entries: list[tuple[int, int, float]] = []
    for j, demand in enumerate(demands):
        overlap = np.minimum(edges[1:], demand.job.deadline_s) - np.maximum(edges[:-1], demand.from_s)
        open_slots = np.flatnonzero(overlap > 0)
        levels = len(demand.hull.gpus)
        count = len(open_slots) * levels
        ids = used_columns + np.arange(count)
        slot_rows = used_rows + np.arange(len(open_slots))
        sizes = np.tile(demand.hull.gpus, len(open_slots))
        data += [np.tile(demand.hull.rate, len(open_slots)), np.ones(count), sizes]
        rows += [np.full(count, j), np.repeat(slot_rows, levels), -1 - np.repeat(open_slots, levels)]
        columns += [ids, ids, ids]
        costs.append(sizes)
        y_entries += [(j, j, -demand.work_s)]
        y_entries += [(int(row), j, -float(o)) for row, o in zip(slot_rows, overlap[open_slots], strict=True)]
        used_columns += count
        used_rows += len(open_slots)
    data.append(np.array([value for _, _, value in y_entries]))
    rows.append(np.array([row for row, _, _ in y_entries]))
    columns.append(np.array([used_columns + j for _, j, _ in y_entries]))
    all_rows = np.concatenate(rows)
    all_rows = np.where(all_rows < 0, used_rows - 1 - all_rows, all_rows)  # capacity rows come last
    shape = (used_rows + len(lengths), used_columns + n)
    matrix = coo_array((np.concatenate(data), (all_rows, np.concatenate(columns))), shape=shape).tocsr()
    low = np.concatenate([np.zeros(n), np.full(shape[0] - n, -np.inf)])
    high = np.concatenate([np.zeros(used_rows), gpus * lengths])
    return _Program(demands, np.concatenate([*costs, np.zeros(n)]), matrix, low, high)


def _solve(program: _Program, objective: Floats, at_least_met: float = 0.0) -> float | None:
    """Least objective of the linear program; None when not so many jobs can be met."""
    n = len(program.demands)
    upper = np.full(program.columns, np.inf)
    upper[-n:] = 1.0
    met = csr_array(np.concatenate([np.zeros(program.columns - n), np.full(n, -1.0)])[np.newaxis])
    result = linprog(
        objective,
        A_eq=program.matrix[:n],
        b_eq=np.zeros(n),
        A_ub=vstack([program.matrix[n:], met]),
        b_ub=np.append(program.high[n:], -at_least_met),
        bounds=np.stack([np.zeros(program.columns), upper], axis=1),
        # measured: simplex is quicker on small programs, interior points by far on large ones
        method="highs-ipm" if program.columns > INTERIOR_POINT_COLUMNS else "highs-ds",
    )
    if result.status == 2:
        return None
    if result.status != 0:
        raise PromptTunerError(f"the solver gave up on the bound: {result.message}; try fewer slots")
    return float(result.fun)


def _branch(program: _Program, objective: Floats, seconds: float) -> float:
    """What branch and bound proves in so much time of the program with whole y; -inf when nothing."""
    n = len(program.demands)
    upper = np.full(program.columns, np.inf)
    upper[-n:] = 1.0
    integrality = np.zeros(program.columns)
    integrality[-n:] = 1
    result = milp(
        objective,
        constraints=LinearConstraint(program.matrix, program.low, program.high),
        bounds=Bounds(0.0, upper),
        integrality=integrality,
        options={"time_limit": seconds},
    )
    proved = result.get("mip_dual_bound")
    return -math.inf if proved is None else float(proved)
