"""``prompttuner simulate``: what would have happened to a trace under each policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prompttuner.cli.frame.output import JsonFlag, check_place, print_json, print_table, writing
from prompttuner.errors import SpecError

if TYPE_CHECKING:
    from prompttuner.policy.contract.plan import Policy
    from prompttuner.policy.contract.snapshot import PoolProfile
    from prompttuner.sim import SimOptions, SimResult
    from prompttuner.trace.job import TraceJob

__all__ = ["app"]

app = typer.Typer()

COLUMNS = ["policy", "jobs", "missed", "%", "rejected", "cost GPU-s", "busy", "start-up", "idle", "resizes", "end s"]


@app.command()
def simulate(
    trace: Annotated[Path, typer.Argument(help="A trace (CSV or JSONL).")],
    policy: Annotated[
        str, typer.Option(help="Policies to compare, with commas between; with switches: infless:bank=off:keep_s=60.")
    ] = "prompttuner,edf,infless",
    without: Annotated[
        str | None, typer.Option(help="Ablations: rules to leave out, one at a time, of each policy that has them.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of the simulated site.")] = 32,
    slo: Annotated[str | None, typer.Option(help="New deadlines: 1.0, or U(0.5,1.5), x the one-GPU time.")] = None,
    profile: Annotated[list[Path] | None, typer.Option(help="Profile of an LLM, or a folder of them; repeat.")] = None,
    bank: Annotated[bool, typer.Option(help="Whether there is a Prompt Bank.")] = True,
    bank_factor: Annotated[float, typer.Option(help="Expected factor on the iterations after a lookup.")] = 0.5,
    tick: Annotated[float, typer.Option(min=0.01, help="Period of the control loop, seconds.")] = 1.0,
    scatter: Annotated[float, typer.Option(min=0, help="Scatter of start-up times: sigma of their logarithm.")] = 0.0,
    error: Annotated[float, typer.Option(min=0, help="Error of predicted iterations, as --scatter.")] = 0.0,
    losses: Annotated[float, typer.Option(min=0, help="Losses of nodes, for each GPU-hour held.")] = 0.0,
    node_gpus: Annotated[int, typer.Option(min=1, help="GPUs that are lost together with a node.")] = 1,
    preemptions: Annotated[float, typer.Option(min=0, help="Preemptions, for each GPU-hour held.")] = 0.0,
    limit: Annotated[bool, typer.Option("--bound", help="Show the lower bounds too (may take minutes).")] = False,
    outcomes: Annotated[Path | None, typer.Option(help="Write one JSON line for each job and policy here.")] = None,
    log: Annotated[Path | None, typer.Option(help="Write <policy>.json for `report --log` into this folder.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw GPUs over time into this PNG.")] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Go on without rows that are broken.")] = False,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Say what would have happened to a trace under each policy."""
    from prompttuner.profiles import load_profiles, remarks, stated
    from prompttuner.sim import SimOptions
    from prompttuner.sim import simulate as run

    _check_places(outcomes, log, plot)
    jobs = _jobs(trace, skip_broken, slo, seed)
    policies = _policies(policy, without)
    llms, given = sorted({job.llm for job in jobs}), load_profiles(profile or [])
    profiles = stated(llms, given)
    for remark in remarks(llms, given):
        typer.echo(f"note: {remark}", err=True)
    has_bank = bank and any(job.bank_factor < 1 for job in jobs)
    high = min(1.0, bank_factor * 1.56)  # P90 of a lognormal with sigma 0.35
    options = SimOptions(
        gpus=gpus, tick_s=tick, seed=seed, bank=has_bank, bank_mid=bank_factor, bank_hi=high, start_sigma=scatter,
        predict_sigma=error, losses_per_gpu_hour=losses, gpus_per_node=node_gpus, preemptions_per_gpu_hour=preemptions,
    )  # fmt: skip
    results = [run(jobs, profiles, one, options) for one in policies]
    figures = [result.summary() for result in results]
    bounds = _bounds(jobs, profiles, options) if limit else None
    if outcomes is not None:
        _write_outcomes(outcomes, results)
    if log is not None:
        _write_logs(log, results, jobs, str(trace))
    if plot is not None:
        _plot(plot, results)
    if json:
        print_json({"trace": str(trace), "gpus": gpus, "slo": slo, "bank": has_bank, "policies": figures,
                    "bound": bounds})  # fmt: skip
        return
    print_table(COLUMNS, [_row(one) for one in figures])
    if bounds:
        typer.echo(
            f"no schedule misses fewer than {bounds['violations']} ({bounds['unavoidable']} are unavoidable) "
            f"or costs less than {bounds['work_gpu_s']:.0f} GPU-s"
        )
    if not has_bank:
        typer.echo("no Prompt Bank: the trace knows no factors, or --no-bank was given")


def _policies(names: str, without: str | None) -> list[Policy]:
    """The policies named, each followed by its ablations."""
    from prompttuner.policy import switches_of, variant

    words = [name.strip() for name in names.split(",") if name.strip()]
    if not words:
        raise SpecError("--policy names no policy")
    rules = [rule.strip() for rule in (without or "").split(",") if rule.strip()]
    known = {word: [s for s, kind in switches_of(word.split(":")[0]).items() if kind is bool] for word in words}
    for rule in rules:
        if not any(rule in switches for switches in known.values()):
            every = ", ".join(dict.fromkeys(switch for switches in known.values() for switch in switches))
            raise SpecError(f"--without: no policy named has a rule '{rule}': choose from {every}")
    ablations = {word: [f"{word}:{rule}=off" for rule in rules if rule in known[word]] for word in words}
    return [variant(one) for word in words for one in (word, *ablations[word])]


def _check_places(outcomes: Path | None, log: Path | None, plot: Path | None) -> None:
    """Before hours of simulation: whether what is asked for can be drawn and written."""
    if outcomes is not None:
        check_place(outcomes, "--outcomes")
    if log is not None:
        from tempfile import TemporaryFile

        from prompttuner.files import make_private_dir

        with writing(log, "--log"):
            TemporaryFile(dir=make_private_dir(log)).close()
    if plot is not None:
        from prompttuner.report.png import load_pyplot

        check_place(plot, "--plot")
        known = load_pyplot().Figure().canvas.get_supported_filetypes()
        if plot.suffix and plot.suffix[1:].lower() not in known:
            raise SpecError(f"--plot {plot}: no picture can be {plot.suffix}; choose .png, .svg or .pdf")


def _jobs(path: Path, skip_broken: bool, slo: str | None, seed: int) -> list[TraceJob]:
    """The trace's jobs, with other deadlines if asked for."""
    from prompttuner.trace.format import read_trace
    from prompttuner.trace.slo import SloMultiple, with_slo

    loaded = read_trace(path)
    if not skip_broken:
        loaded.require_clean()
    for problem in loaded.problems:
        typer.echo(f"left out: {path} {problem}", err=True)
    if not loaded.jobs:
        raise SpecError(f"{path} holds no job that can be read")
    return with_slo(loaded.jobs, SloMultiple.parse(slo), seed) if slo else list(loaded.jobs)


def _row(figures: dict[str, Any]) -> list[Any]:
    keys = ("policy", "with_deadline", "violations", "violations_pct", "rejected", "cost_gpu_s", "busy_gpu_s",
            "startup_gpu_s", "idle_gpu_s", "resizes", "end_s")  # fmt: skip
    return [round(figures[key]) if key.endswith("_s") else figures[key] for key in keys]


def _bounds(jobs: list[TraceJob], profiles: dict[str, PoolProfile], options: SimOptions) -> dict[str, Any]:
    from dataclasses import asdict

    from prompttuner.sim.bound import bound

    speedups = {name: profile.speedup for name, profile in profiles.items()}
    found = asdict(bound(jobs, options.gpus, speedups, bank=options.bank))
    found.pop("unavoidable_ids")
    return found


def _write_outcomes(path: Path, results: list[SimResult]) -> None:
    import json

    with writing(path, "--outcomes"), path.open("w") as file:
        for result in results:
            for job in result.outcomes():
                plain = {key: None if value == float("inf") else value for key, value in job.items()}
                file.write(json.dumps({"policy": result.policy, **plain}) + "\n")


def _write_logs(folder: Path, results: list[SimResult], jobs: list[TraceJob], source: str) -> None:
    from prompttuner.report.data import save_data
    from prompttuner.report.simulated import from_simulation

    with writing(folder, "--log"):
        for result in results:
            save_data(folder / f"{result.policy}.json", from_simulation(result, jobs, source))


def _plot(path: Path, results: list[SimResult]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), 1, sharex=True, squeeze=False)[:, 0]
    for axis, result in zip(axes, results, strict=True):
        times = [row[0] for row in result.usage] + [result.end_s]
        parts = [[row[k] for row in result.usage] + [0] for k in (1, 2, 3)]
        axis.stackplot(times, *parts, labels=("busy", "starting", "idle"), step="post")
        axis.set_ylabel("GPUs")
        axis.set_title(f"{result.policy}: {result.violations} missed, {result.cost_s:.0f} GPU-s", fontsize=9)
    axes[0].legend(loc="upper right", fontsize=8)
    axes[-1].set_xlabel("seconds")
    with writing(path, "--plot"):
        figure.savefig(path, dpi=120)
