"""ElasticFlow's traces (microsoft/elasticflow-traces) and its throughput tables (pkusys/ElasticFlow)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from prompttuner.errors import DataError
from prompttuner.policy.contract.snapshot import PoolProfile
from prompttuner.profiles.load import stated
from prompttuner.trace.job import TraceJob
from prompttuner.trace.rows import Loaded, build_jobs, csv_rows, integer, number, open_text

__all__ = ["Throughputs", "import_elasticflow", "profiles_of", "read_throughputs", "speedups_of"]

Throughputs = Mapping[str, tuple[tuple[int, float], ...]]
"""Pool name (model and global batch) -> (GPUs, iterations a second), up to the fastest size."""


def pool_name(model: str, batch: int) -> str:
    return f"{model}-b{batch}"


def read_throughputs(folder: Path) -> Throughputs:
    """All ``<model>.csv`` of a folder: rows by global batch size, columns by GPUs.

    Sizes beyond the fastest one are left out: there more GPUs do less.

    Raises:
        DataError: no tables there, or a broken one (named with its line).
    """
    tables: dict[str, tuple[tuple[int, float], ...]] = {}
    for path in sorted(folder.glob("*.csv")):
        problems: list = []  # type: ignore[type-arg]
        for line, row in csv_rows(open_text(path), str(path), ["global_batch_size", "1"], problems):
            try:
                batch = integer(row, "global_batch_size")
                known = sorted((int(n), number(row, n)) for n, v in row.items() if n.isdigit() and v not in ("", "nan"))
                if not known or known[0][0] != 1 or known[0][1] <= 0:
                    raise ValueError("no throughput of one GPU")
            except ValueError as error:
                raise DataError(f"{path} line {line}: {error}") from None
            fastest = max(known, key=lambda pair: pair[1])[0]
            tables[pool_name(path.stem, batch)] = tuple(pair for pair in known if pair[0] <= fastest and pair[1] > 0)
        if problems:
            raise DataError(f"{path} {problems[0]}")
    if not tables:
        raise DataError(f"no throughput tables (*.csv) in {folder}")
    return tables


def speedups_of(throughputs: Throughputs) -> dict[str, tuple[tuple[int, float], ...]]:
    """(GPUs, speed-up over one GPU) for each pool."""
    return {name: tuple((n, rate / table[0][1]) for n, rate in table) for name, table in throughputs.items()}


def profiles_of(throughputs: Throughputs, pools: Iterable[str], source: str) -> list[PoolProfile]:
    """Profiles of these pools: speed-up and step time from the tables, all other times those of the default profile."""
    usual = stated(["default"])["default"]
    speedups = speedups_of(throughputs)
    return [
        replace(
            usual,
            name=pool,
            speedup=tuple(accumulate(speedups[pool], lambda before, now: (now[0], max(before[1], now[1])))),
            step_s=1 / throughputs[pool][0][1],
            origin=f"speed-up and step time from {source}; other times: {usual.origin}",
        )
        for pool in sorted(pools)
    ]


def import_elasticflow(path: Path, throughputs: Throughputs) -> Loaded:
    """Read one of ElasticFlow's traces; times are kept as they are, pools are named ``<model>-b<batch>``.

    Columns: ``job_id, submission_time|submit_time, num_iteration|iteration, model_name, deadline|ddl, batch_size,
    num_gpu, duration [, best_effort]``.
    """
    loaded = Loaded(str(path))

    def make(row: Mapping[str, object]) -> TraceJob:
        pool = pool_name(str(row["model_name"]), integer(row, "batch_size"))
        if pool not in throughputs:
            raise ValueError(f"no throughput of {row['model_name']} at batch size {row['batch_size']}")
        table = throughputs[pool]
        return TraceJob(
            id=str(row["job_id"]),
            submit_s=number(row, _one_of(row, "submission_time", "submit_time")),
            llm=pool,
            task=str(row["model_name"]),
            iters=number(row, _one_of(row, "num_iteration", "iteration")),
            step_s=1 / table[0][1],
            deadline_s=float("inf") if row.get("best_effort") == "1" else number(row, _one_of(row, "deadline", "ddl")),
            max_gpus=table[-1][0],
            requested_gpus=integer(row, "num_gpu"),
        )

    required = ("job_id", "model_name", "batch_size", "num_gpu")
    return build_jobs(loaded, csv_rows(open_text(path), str(path), required, loaded.problems), make)


def _one_of(row: Mapping[str, object], *names: str) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        raise ValueError(f"no column {' or '.join(names)}")
    return found
