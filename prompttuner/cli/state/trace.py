"""``prompttuner trace``: traces of jobs, for simulations and replays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prompttuner.cli.frame.output import JsonFlag, print_json, print_pairs, writing
from prompttuner.errors import SpecError
from prompttuner.words import Counted

if TYPE_CHECKING:
    from prompttuner.trace.importers.common import Wanted
    from prompttuner.trace.job import TraceJob
    from prompttuner.trace.rows import Loaded

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Import, generate and describe traces of jobs.")

WHOLE = ("elasticflow", "prompttuner")
"""Kinds whose jobs are taken as they are."""
KINDS = ("elasticflow", "philly", "chronus", "swf", "sacct", "azure", "gentd26", "prompttuner")

MOST_LOAD = 10
MANY_COPIES = 10
"""Copies of a window's jobs from which on it is another workload than its trace was."""

Out = Annotated[Path, typer.Option("--out", "-o", help="The trace to write: .csv or .jsonl.")]
Slo = Annotated[str | None, typer.Option(help="Deadlines by SLO multiple: 1.0, or U(0.5,1.5).")]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]


@app.callback()
def group() -> None:
    """Import, generate and describe traces of jobs."""


@app.command("import")
def import_(
    kind: Annotated[str, typer.Argument(help=f"What the file is: {', '.join(KINDS)}.")],
    path: Annotated[Path, typer.Argument(help="The file.")],
    out: Out,
    throughputs: Annotated[Path | None, typer.Option(help="elasticflow: the folder of throughput tables.")] = None,
    loads: Annotated[Path | None, typer.Option(help="gentd26: the file of measured base-model loads.")] = None,
    profiles: Annotated[
        Path | None, typer.Option(help="elasticflow, gentd26 (with --loads): write a profile of each pool here.")
    ] = None,
    factor: Annotated[float, typer.Option(help="Multiply run times by this.")] = 1.0,
    min_s: Annotated[float, typer.Option(help="Leave out jobs that ran for less.")] = 0.0,
    max_s: Annotated[float, typer.Option(help="Leave out jobs that ran for longer.")] = math.inf,
    max_gpus: Annotated[int, typer.Option(help="Leave out jobs of more GPUs; also the most a job may use.")] = 8,
    cpus_per_gpu: Annotated[int, typer.Option(min=1, help="swf: processors that stand for one GPU.")] = 1,
    start: Annotated[float | None, typer.Option(help="Cut out a window that begins so many seconds in.")] = None,
    window: Annotated[
        int | None, typer.Option(min=0, help="Cut out this window, of those of --length in turn.")
    ] = None,
    length: Annotated[float, typer.Option(min=1, help="Length of that window, in seconds.")] = 7200.0,
    gpus: Annotated[int, typer.Option(min=1, help="Cluster that --load refers to.")] = 32,
    load: Annotated[float | None, typer.Option(help="Thin out or copy jobs until the window has this load.")] = None,
    slo: Slo = None,
    seed: Seed = 0,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Go on without rows that are broken.")] = False,
    json: JsonFlag = False,
) -> None:
    """Turn a public trace, a scheduler's log or a site's own past into a trace."""
    from prompttuner.trace.format import write_trace
    from prompttuner.trace.importers.common import Wanted
    from prompttuner.trace.slo import SloMultiple, with_slo
    from prompttuner.trace.window import cut, to_load

    wanted = Wanted(min_s=min_s, max_s=max_s, max_gpus=max_gpus, factor=factor, seed=seed)
    if window is not None:
        if start is not None:
            raise SpecError("--window and --start both say which window: choose one")
        start = window * length
    _check(kind, wanted != Wanted(seed=seed), start, load)
    _check_profiles(kind, profiles, loads)
    loaded = _load(kind, path, wanted, throughputs, cpus_per_gpu)
    if not skip_broken:
        loaded.require_clean()
    jobs: list[TraceJob] = loaded.jobs
    copies = 1
    if start is not None:
        jobs = cut(jobs, start, length)
    if load is not None and jobs:
        before, jobs = jobs, to_load(jobs, gpus, load, length_s=length, seed=seed)
        copies = math.ceil(len(jobs) / len(before))
    if slo is not None:
        jobs = with_slo(jobs, SloMultiple.parse(slo), seed)
    if not jobs:
        raise SpecError(f"no job of {path} is left: {_why_none(loaded)}")
    with writing(out, "--out"):
        write_trace(out, jobs)
    for problem in loaded.problems:
        typer.echo(f"skipped {problem}", err=True)
    told = {"jobs": len(jobs), "written": str(out), "broken": len(loaded.problems), "left_out": loaded.left_out}
    if profiles is not None:
        told["profiles"] = _write_profiles(profiles, throughputs, loads, {job.llm for job in jobs}, seed)
    if json:
        print_json({**told, "copies": copies})
        return
    print_pairs({**told, "broken": len(loaded.problems) or None, "left_out": _left_out(loaded)})
    if copies > MANY_COPIES:
        typer.echo(
            f"note: the window has little load of its own, so its jobs stand there up to {copies} times; "
            "--start chooses a busier one",
            err=True,
        )


@app.command()
def generate(
    out: Out,
    gpus: Annotated[int, typer.Option(min=1, help="Cluster that the load refers to.")] = 32,
    load: Annotated[float, typer.Option(help="Work over capacity.")] = 0.6,
    length: Annotated[float, typer.Option(help="Length in seconds.")] = 7200.0,
    burst: Annotated[float, typer.Option(help="Mean jobs in a burst; 1 is a Poisson stream.")] = 8.0,
    spread: Annotated[float, typer.Option(help="Mean seconds from a burst's begin to its jobs.")] = 60.0,
    every: Annotated[float, typer.Option(help="Bursts at regular times, seconds apart; 0: at random ones.")] = 0.0,
    work: Annotated[float, typer.Option(help="Median seconds of a job on one GPU, at most 1800.")] = 300.0,
    llm: Annotated[str | None, typer.Option(help="One LLM for all jobs; default: a stated mix of three.")] = None,
    slo: Slo = "U(0.5,1.5)",
    seed: Seed = 0,
    json: JsonFlag = False,
) -> None:
    """Make a bursty stream of prompt-tuning jobs; equal options give equal traces."""
    from prompttuner.trace.format import write_trace
    from prompttuner.trace.generate import DEFAULT_MIX, LlmMix, Workload
    from prompttuner.trace.generate import generate as make
    from prompttuner.trace.slo import SloMultiple

    multiple = None if slo in (None, "none") else SloMultiple.parse(slo)
    steps = {mix.llm: mix.step_s for mix in DEFAULT_MIX}
    if llm is not None and llm not in steps:
        raise SpecError(f"--llm {llm}: choose one of {', '.join(steps)}, which have stated step times")
    jobs = make(
        Workload(
            gpus=gpus, load=load, length_s=length, burst_jobs=burst, burst_spread_s=spread, every_s=every,
            work_median_s=work, llms=DEFAULT_MIX if llm is None else (LlmMix(llm, 1.0, steps[llm]),), slo=multiple,
            seed=seed,
        )
    )  # fmt: skip
    with writing(out, "--out"):
        write_trace(out, jobs)
    told = {"jobs": len(jobs), "written": str(out)}
    if json:
        print_json(told)
    else:
        print_pairs(told)


@app.command()
def stats(
    path: Annotated[Path, typer.Argument(help="A trace.")],
    gpus: Annotated[int, typer.Option(min=1, help="Cluster that the load refers to.")] = 32,
    plot: Annotated[Path | None, typer.Option(help="Also draw it, into this PNG file.")] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Go on without rows that are broken.")] = False,
    json: JsonFlag = False,
) -> None:
    """Describe a trace: jobs, work, load, burstiness, deadlines."""
    from prompttuner.trace.format import read_trace
    from prompttuner.trace.stats import trace_stats

    loaded = read_trace(path)
    if not skip_broken:
        loaded.require_clean()
    figures = trace_stats(loaded.jobs, gpus)
    if plot is not None:
        from prompttuner.report.trace_plot import plot_stats

        with writing(plot, "--plot"):
            plot_stats(plot, loaded.jobs)
    if json:
        print_json({**figures, "broken": len(loaded.problems)})
        return
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in figures.items()}
    shown["llms"] = ", ".join(f"{name} {count}" for name, count in figures["llms"].items())
    print_pairs({**shown, "broken rows": len(loaded.problems) or None, "plot": plot})


def _load(kind: str, path: Path, wanted: Wanted, throughputs: Path | None, cpus_per_gpu: int) -> Loaded:
    from prompttuner.trace.format import read_trace
    from prompttuner.trace.importers import elasticflow, gentd26, logs, tables

    if kind == "prompttuner":
        return read_trace(path)
    if kind == "elasticflow":
        if throughputs is None:
            raise SpecError("elasticflow traces need --throughputs: the folder with one <model>.csv a model")
        return elasticflow.import_elasticflow(path, elasticflow.read_throughputs(throughputs))
    if kind == "swf":
        return logs.import_swf(path, wanted, cpus_per_gpu)
    if kind == "gentd26":
        return gentd26.import_gentd26(path, wanted)
    others = {
        "philly": tables.import_philly,
        "chronus": tables.import_chronus,
        "azure": tables.import_azure,
        "sacct": logs.import_sacct,
    }
    if kind not in others:
        raise SpecError(f"there is no importer {kind!r}: choose one of {', '.join(KINDS)}")
    return others[kind](path, wanted)


def _check(kind: str, chosen: bool, start: float | None, load: float | None) -> None:
    """Options that would mean nothing are refused, not ignored. Raises SpecError."""
    if kind in WHOLE and chosen:
        told = "--min-s, --max-s, --max-gpus and --factor"
        raise SpecError(f"{told} do not apply to {kind}: its jobs are taken as they are")
    if load is not None and (start is None or not 0 < load <= MOST_LOAD):
        raise SpecError(
            f"--load needs a window (--start or --window, --length) and a figure above 0, {MOST_LOAD} at most"
        )


def _check_profiles(kind: str, profiles: Path | None, loads: Path | None) -> None:
    """Raises SpecError where the kind has no profiles to write, or nothing to make them from."""
    if profiles is not None and kind not in ("elasticflow", "gentd26"):
        raise SpecError(f"--profiles: {kind} says nothing of speed-ups or loads; elasticflow and gentd26 do")
    if (loads is not None) != (profiles is not None and kind == "gentd26"):
        raise SpecError("--loads (gentd26's measured loads) and --profiles go together, for gentd26 alone")


def _write_profiles(folder: Path, throughputs: Path | None, loads: Path | None, pools: set[str], seed: int) -> str:
    from prompttuner.files import make_private_dir
    from prompttuner.profiles import save_profile
    from prompttuner.trace.importers import elasticflow, gentd26

    if loads is not None:
        made = gentd26.profiles_of(pools, gentd26.read_loads(loads), f"GenTD26's measured loads ({loads})", seed)
    elif throughputs is not None:
        source = f"ElasticFlow's throughput tables ({throughputs})"
        made = elasticflow.profiles_of(elasticflow.read_throughputs(throughputs), pools, source)
    else:
        raise SpecError("--profiles needs --throughputs (elasticflow) or --loads (gentd26)")
    with writing(folder, "--profiles"):
        make_private_dir(folder)
        for profile in made:
            save_profile(folder, profile)
    return f"{len(made)} in {folder}"


def _why_none(loaded: Loaded) -> str:
    if loaded.jobs:
        return f"none of its jobs ({len(loaded.jobs)}) was submitted in the window, or --load is below its smallest job"
    broken = str(Counted(len(loaded.problems), "broken row")) if loaded.problems else ""
    return ", ".join(filter(None, (broken, _left_out(loaded)))) or "it has no rows"


def _left_out(loaded: Loaded) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(loaded.left_out.items()))
