"""``prompttuner submit``: one job, or a sweep, from files and flags."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.output import JsonFlag, print_json, print_table
from prompttuner.errors import NotFound, PromptTunerError, SpecError
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.spec.when import format_duration
from prompttuner.words import Counted

__all__ = ["app"]

app = typer.Typer()

DATA, TUNING, PLACE = "Task and data", "Tuning", "Deadline and GPUs"


def _option(text: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)


@app.command()
def submit(
    files: Annotated[list[Path] | None, typer.Argument(help="Job specs, TOML or JSON. Flags win over them.")] = None,
    model: Annotated[str | None, _option("Hub id, local folder, or 'small'.", DATA)] = None,
    train: Annotated[Path | None, _option("Training data, JSONL with input and target.", DATA)] = None,
    eval_: Annotated[Path | None, _option("Evaluation data, the same form.", DATA, "--eval")] = None,
    template: Annotated[str | None, _option("Text with {input} and {target}, or 'chat'.", DATA)] = None,
    note: Annotated[str | None, _option("What the task is, in words.", DATA)] = None,
    name: Annotated[str | None, _option("A name of your own.", DATA)] = None,
    target: Annotated[str | None, _option("loss<=x, exact_match>=x or rougeL>=x.", TUNING)] = None,
    max_iterations: Annotated[
        int | None, _option("Give up after so many.", TUNING, "--max-iterations", "--iterations")
    ] = None,
    prompt_length: Annotated[int | None, _option("Virtual tokens.", TUNING, "--prompt-length", "--length")] = None,
    learning_rate: Annotated[
        str | None, _option("Of AdamW: a number, or auto.", TUNING, "--learning-rate", "--lr")
    ] = None,
    batch_size: Annotated[
        int | None, _option("Samples of an iteration, over all GPUs.", TUNING, "--batch-size", "--batch", "--bs")
    ] = None,
    eval_every: Annotated[int | None, _option("Iterations between evaluations.", TUNING)] = None,
    eval_samples: Annotated[int | None, _option("Evaluate on the first n only.", TUNING)] = None,
    seed: Annotated[int | None, _option("Of sample order and random prompts.", TUNING)] = None,
    initial_prompt: Annotated[
        str | None, _option("auto, random, vocab, text:..., a file.", TUNING, "--initial-prompt", "--init")
    ] = None,
    bucketing: Annotated[bool | None, _option("Batches of similar length.", TUNING)] = None,
    dtype: Annotated[str | None, _option("auto, float32, bfloat16 or float16.", TUNING)] = None,
    trust_remote_code: Annotated[list[str] | None, _option("Model whose own code may run.", TUNING)] = None,
    allow_unknown_tokens: Annotated[bool | None, _option("Though targets hold unknown tokens.", TUNING)] = None,
    allow_unused_weights: Annotated[bool | None, _option("Though stored weights have no place.", TUNING)] = None,
    deadline: Annotated[str | None, _option("30m, 1h30m, or a time with its zone.", PLACE)] = None,
    on_miss: Annotated[str | None, _option("After a missed deadline: continue or stop.", PLACE)] = None,
    priority: Annotated[int | None, _option("Higher goes first among equals.", PLACE)] = None,
    min_gpus: Annotated[int | None, _option("Never fewer while it runs.", PLACE)] = None,
    max_gpus: Annotated[int | None, _option("Never more.", PLACE)] = None,
    gpu_type: Annotated[str | None, _option("As Slurm names it.", PLACE)] = None,
    setup: Annotated[list[str] | None, _option("Shell line before the agent (repeatable).", PLACE)] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="A sweep: lr=1e-2,3e-2,seed=0,1 (repeatable).", show_default=False)
    ] = None,
    hold: Annotated[bool, typer.Option(help="Submit held: nothing runs before `release`.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, show what would happen, do nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the job ids only.")] = False,
    json: JsonFlag = False,
) -> None:
    """Submit one job, or a sweep of them."""
    flags = {
        "model": model, "train": train, "eval": eval_, "template": template, "note": note, "name": name,
        "target": target, "max_iterations": max_iterations, "prompt_length": prompt_length,
        "learning_rate": learning_rate, "batch_size": batch_size, "eval_every": eval_every,
        "eval_samples": eval_samples, "seed": seed, "initial_prompt": initial_prompt, "bucketing": bucketing,
        "dtype": dtype, "trust_remote_code": trust_remote_code, "deadline": deadline, "on_miss": on_miss,
        "priority": priority, "min_gpus": min_gpus, "max_gpus": max_gpus, "gpu_type": gpu_type, "setup": setup,
        "allow_unknown_tokens": allow_unknown_tokens, "allow_unused_weights": allow_unused_weights,
    }  # fmt: skip
    given = {key: value for key, value in flags.items() if value is not None}
    specs = resolve_all(files or [], given, grid or [])
    notes = check_all(specs)
    if not quiet:
        tell_notes(notes)
    if dry_run:
        _show_dry_run(specs, json)
        return
    _submit(specs, hold, quiet, json)


def resolve_all(files: list[Path], flags: dict[str, Any], grid: list[str]) -> list[ResolvedSpec]:
    """Frozen specs of everything asked for; all are checked before any is submitted.

    Raises:
        SpecError: one of them is wrong; none is submitted then.
    """
    from prompttuner.bank.folder.named import resolve_entry
    from prompttuner.spec import load_values, make_spec, resolve
    from prompttuner.spec.grid import expand_grid, parse_grid
    from prompttuner.spec.models import check_at_hand

    if not files and not flags:
        raise SpecError("nothing to submit: give a spec file, or at least --model, --train, --eval and --target")
    now = time.time()
    settings = context.settings()
    offline = settings.backend == "slurm" and settings.slurm.offline
    axes = parse_grid(grid)
    sources = [(str(path), load_values(path, flags)) for path in files] or [("flags", flags)]
    specs = []
    for source, values in sources:
        for combination in expand_grid(values, axes):
            spec = resolve(make_spec(combination, source=source), now)
            specs.append(resolve_entry(spec, settings.all_bank_dirs))
    for model in dict.fromkeys(spec.model for spec in specs):
        check_at_hand(model, offline)
    return specs


def check_all(specs: Sequence[ResolvedSpec]) -> list[str]:
    """The same checks for `--dry-run`, `submit` and `sbatch`; what the user should know, each once.

    Raises:
        PromptTunerError: what would be refused, or fail in a worker's first minute.
    """
    from prompttuner.cli.frame.asking import client

    return client().check(specs)


def tell_notes(notes: list[str]) -> None:
    """On standard error, so that ids on standard output stay alone."""
    for note in notes:
        sys.stderr.write(f"note: {note}\n")


def _submit(specs: list[ResolvedSpec], hold: bool, quiet: bool, json: bool) -> None:
    from prompttuner.cli.frame.asking import client, tell

    asker = client()
    request = asker.new_request(specs, hold=hold)
    try:
        (answer,) = asker.ask([request])
    except KeyboardInterrupt:
        ids = ", ".join(new.job for new in request.jobs)
        sys.stderr.write(f"interrupted; `prompttuner status` shows whether {ids} were left in the inbox\n")
        raise
    if json:
        print_json(
            [
                {"job": new.job, "name": new.spec.name, "deadline_at": new.spec.deadline_at,
                 "deadline_iso": new.spec.deadline_iso, "applied": answer.applied, "ok": not answer.refused,
                 "message": answer.message, "request": answer.request.id}
                for new in request.jobs
            ]
        )  # fmt: skip
    elif not answer.refused:
        for new in request.jobs:
            typer.echo(new.job if quiet else _line(new.job, new.spec))
    tell([answer])
    if answer.refused:
        raise SpecError(f"refused: {answer.message}")


def _line(job_id: str, spec: ResolvedSpec) -> str:
    name = f" ({spec.name})" if spec.name else ""
    if spec.deadline_at is None:
        return f"submitted {job_id}{name}, best effort"
    left = format_duration(spec.deadline_at - (spec.submitted_at or 0.0))
    return f"submitted {job_id}{name}, deadline {spec.deadline_iso} (in {left})"


def _show_dry_run(specs: list[ResolvedSpec], json: bool) -> None:
    where = _what_would_run()
    if json:
        print_json({"jobs": [spec.to_json() for spec in specs], "would": where})
        return
    rows = [
        [
            spec.name or "-",
            spec.model_name,
            str(spec.target),
            spec.deadline_iso or "best effort",
            f"{spec.train_count}+{spec.eval_count}",
            f"{spec.min_gpus}-{spec.max_gpus}",
            str(spec.initial_prompt),
            f"at most {spec.max_iterations}",
        ]
        for spec in specs
    ]
    columns = ["name", "model", "target", "deadline", "samples", "GPUs", "initial prompt", "iterations"]
    print_table(columns, rows, f"Would submit {Counted(len(specs), 'job')}:")
    for line in where:
        typer.echo(line)
    typer.echo("Nothing was submitted (--dry-run).")


def _what_would_run() -> list[str]:
    """In words: who would take the jobs, and where they would run."""
    from prompttuner.cli.state.reading import controller_text

    settings = context.settings()
    lines = [f"Request files would go to {settings.spool_dir / 'inbox'}.", controller_text()]
    if settings.backend == "local":
        lines.append(f"They would run as processes on this machine, {settings.local.slots} at a time.")
    else:
        partition = settings.slurm.partition or "the default partition"
        lines.append(
            f"Slurm would be asked for allocations of {Counted(settings.slurm.gpus_per_agent, 'GPU')} in {partition}; "
            "`prompttuner render agent` shows the script."
        )
    try:
        from prompttuner.policy.registry import get

        lines.append(
            f"Policy: {get(settings.policy).name}; idle agents end after {format_duration(settings.idle_limit_s)}."
        )
    except (PromptTunerError, NotFound) as error:
        lines.append(f"Not ready: {error}")
    return lines
