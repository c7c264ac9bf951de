"""``prompttuner init``: find out what this site is like and write settings for it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.output import JsonFlag, print_json
from prompttuner.errors import SpecError, StateError

if TYPE_CHECKING:
    from prompttuner.slurm.site.profile import Proposal

__all__ = ["app"]

app = typer.Typer()


@app.command()
def init(
    backend: Annotated[str, typer.Option(help="auto, local or slurm.")] = "auto",
    partition: Annotated[str | None, typer.Option(help="Slurm partition of the allocations.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a config.toml that is there (kept as .old).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the file, write nothing.")] = False,
    json: JsonFlag = False,
) -> None:
    """Find out what this site is like and write settings for it."""
    from prompttuner.slurm.site.profile import to_toml

    if backend not in {"auto", "local", "slurm"}:
        raise SpecError(f"--backend {backend}: must be auto, local or slurm")
    if backend == "auto":
        backend = "local" if shutil.which("sbatch") is None else "slurm"
    settings = context.settings()
    path = settings.home / "config.toml"
    if backend == "local":
        values, words = _local()
    else:
        proposal = _slurm(partition, settings.slurm.call_timeout_s)
        values, words = dict(proposal.settings), list(proposal.words)
    text = to_toml(values, ("Written by `prompttuner init`; `prompttuner config show` says what is in force.",))
    written = False
    if not dry_run:
        _write(path, text, force)
        written = True
    if json:
        print_json({"settings": values, "words": words, "file": str(path), "written": written})
        return
    for word in words:
        typer.echo(word)
    if written:
        typer.echo(f"\nWritten to {path}. Next: `prompttuner doctor`.")
    else:
        typer.echo(f"\n# {path} (not written)\n{text}", nl=False)


def _local() -> tuple[dict[str, Any], list[str]]:
    slots = max(1, (os.cpu_count() or 2) // 2)
    words = [f"No Slurm here: jobs run as processes on this machine, {slots} at a time."]
    return {"backend": "local", "local": {"slots": slots}}, words


def _slurm(partition: str | None, timeout_s: float) -> Proposal:
    from prompttuner.slurm.command import SlurmClient
    from prompttuner.slurm.site.profile import propose
    from prompttuner.slurm.site.site import detect_site

    site = detect_site(SlurmClient(timeout_s))
    if partition is not None and site.partition(partition) is None:
        names = ", ".join(one.name for one in site.partitions)
        raise SpecError(f"--partition {partition}: there is none of that name; there are: {names}")
    return propose(site, os.environ, shutil.which("crontab") is not None, partition)


def _write(path: Any, text: str, force: bool) -> None:
    from prompttuner.files import make_private_dir, write_bytes

    make_private_dir(path.parent)
    if path.exists():
        if not force:
            raise StateError(f"{path} is there already: look with --dry-run, replace it with --force")
        write_bytes(path.with_name("config.toml.old"), path.read_bytes())
    write_bytes(path, text.encode())
