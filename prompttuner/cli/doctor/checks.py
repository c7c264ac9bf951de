"""What ``doctor`` looks at. Each check is a function that takes the settings and yields findings."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from prompttuner.cli.doctor.findings import Finding, Verdict
from prompttuner.errors import PromptTunerError
from prompttuner.spec.when import format_duration

if TYPE_CHECKING:
    from prompttuner.config import Settings

__all__ = ["CHECKS", "Check"]

ORDERS_LOOKED_AT = 50
LOW_DISK, NO_DISK = 1 << 30, 1 << 24
"""Bytes free: below the first, checkpoints and results may not fit; below the second, not even the state does."""
PACKAGES = ("torch", "transformers", "peft", "submitit", "sqlalchemy", "safetensors")


Check = Callable[["Settings"], Iterator[Finding]]


def packages(settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """Python and what is installed."""
    yield Finding("python", Verdict.OK, f"{sys.version.split()[0]} at {sys.executable}")
    for name in PACKAGES:
        try:
            yield Finding(name, Verdict.OK, version(name))
        except PackageNotFoundError:
            yield Finding(name, Verdict.WRONG, f"not installed: pip install {name}")


def folders(settings: Settings) -> Iterator[Finding]:
    """Home and spool: private, writable, with room."""
    for what, folder in (("home", settings.home), ("spool", settings.spool_dir)):
        if not folder.exists():
            yield Finding(what, Verdict.OK, f"{folder} will be created with mode 0700")
            continue
        mode = folder.stat().st_mode & 0o777
        if mode & 0o022:
            yield Finding(what, Verdict.WRONG, f"{folder} can be written by others (mode {mode:o}): chmod 700 {folder}")
        elif mode & 0o055:
            yield Finding(what, Verdict.ADVICE, f"{folder} can be read by others (mode {mode:o}): chmod 700 {folder}")
        else:
            yield Finding(what, Verdict.OK, f"{folder} (mode {mode:o})")
        if not os.access(folder, os.W_OK | os.X_OK):
            text = f"{folder} cannot be written: see its owner, and whether its file system is mounted read-only"
            yield Finding(what, Verdict.WRONG, text)
        free = shutil.disk_usage(folder).free
        if free < LOW_DISK:
            verdict = Verdict.WRONG if free < NO_DISK else Verdict.ADVICE
            yield Finding(what, verdict, f"only {free / 1e6:.0f} MB are free at {folder}: free some")


def spool_delay(settings: Settings) -> Iterator[Finding]:
    """How long agents took to see their orders: the shared folder's delay as it really is, polls and ticks included."""
    from statistics import median

    from prompttuner.db import Store
    from prompttuner.db.queries import allocations
    from prompttuner.errors import DatabaseError
    from prompttuner.protocol.agents import GivenOrder
    from prompttuner.protocol.files import understood

    try:
        with Store.open(settings.database_url, read_only=True) as store:
            rows = store.query(lambda session: allocations.find(session, limit=ORDERS_LOOKED_AT))
    except DatabaseError:
        return  # the database's own check says what is wrong
    orders = [understood(GivenOrder.read(row.order or {})) for row in rows]
    seen = [order.seen_s for order in orders if order is not None and order.seen_s is not None]
    if seen:
        most = f"median of {len(seen)}, at most {max(seen):.1f} s"
        text = f"agents saw changes of the spool after {median(seen):.1f} s ({most})"
        late = max(seen) > settings.suspect_s
        advice = f"{text}: longer than suspect_s; mount it with a shorter attribute cache, or raise suspect_s"
        yield Finding("shared folder delay", Verdict.ADVICE if late else Verdict.OK, advice if late else text)


def database(settings: Settings) -> Iterator[Finding]:
    """The database can be opened, and somebody works on it."""
    from prompttuner.client import reading as state
    from prompttuner.db.store.failures import NoDatabase
    from prompttuner.db.store.place import NETWORK_FILE_SYSTEMS, file_system_of, parse_place
    from prompttuner.db.store.store import Store

    try:
        place = parse_place(settings.database_url)
        with Store.open(settings.database_url, read_only=True, retry_s=state.READ_RETRY_S) as store:
            owner = store.owner()
    except NoDatabase:
        yield Finding("database", Verdict.OK, f"{place} does not exist yet: the first submit creates it")
        return
    except PromptTunerError as error:
        yield Finding("database", Verdict.WRONG, str(error))
        return
    kind = None if place.path is None else file_system_of(place.path)
    if kind in NETWORK_FILE_SYSTEMS:
        text = f"{place} lies on a network file system ({kind}): locks must work there; Postgres is the better choice"
        yield Finding("database", Verdict.ADVICE, text)
    else:
        yield Finding("database", Verdict.OK, str(place))
    if owner.owner is None:
        last = (
            ""
            if owner.renewed_at is None
            else f", the last tick was {format_duration(time.time() - owner.renewed_at)} ago"
        )
        text = f"none runs now{last}: unless cron makes ticks, start `prompttuner run`, so that jobs move on"
        yield Finding("controller", Verdict.ADVICE, text)
    elif (silent := state.silence(owner)) is not None:
        yield Finding("controller", Verdict.ADVICE, f"{silent}: the next tick takes over; is there one to come?")
    else:
        yield Finding("controller", Verdict.OK, f"`{owner.command}` on {owner.host}, process {owner.pid}")


def secrets(settings: Settings) -> Iterator[Finding]:
    """Files that hold a password are private."""
    from prompttuner.cli.frame import context
    from prompttuner.config.mask import mask_text

    if settings.database is None or mask_text(settings.database) == settings.database:
        return
    origin = Path(context.layers().origins["database"])
    if origin.is_file() and origin.stat().st_mode & 0o044:
        text = f"{origin} holds the database's password and can be read by others: chmod 600 {origin}, or use ~/.pgpass"
        yield Finding("secrets", Verdict.WRONG, text)


def intervals(settings: Settings) -> Iterator[Finding]:
    """Ticks come often enough that warm agents are used before they end themselves."""
    if settings.cron_tick_s > settings.idle_limit_s / 2:
        yield Finding(
            "intervals",
            Verdict.WRONG,
            f"cron ticks every {format_duration(settings.cron_tick_s)} are too rare for an idle limit of "
            f"{format_duration(settings.idle_limit_s)}: warm agents would end between ticks; lower cron_tick_s to at "
            f"most {format_duration(settings.idle_limit_s / 2)}",
        )
    else:
        yield Finding("intervals", Verdict.OK, f"idle agents end after {format_duration(settings.idle_limit_s)}")


def policy(settings: Settings) -> Iterator[Finding]:
    """The policy exists."""
    from prompttuner.policy.registry import get

    try:
        yield Finding("policy", Verdict.OK, get(settings.policy).name)
    except PromptTunerError as error:
        yield Finding("policy", Verdict.WRONG, str(error))


def backend(settings: Settings) -> Iterator[Finding]:
    """Where allocations come from."""
    if settings.backend == "local":
        yield Finding("backend", Verdict.OK, f"local: {settings.local.slots} processes at a time on this machine")
    elif shutil.which("sbatch") is None:
        yield Finding("backend", Verdict.WRONG, "slurm: there is no sbatch on PATH; log in to a node that has it")
    else:
        from prompttuner.cli.doctor.site_checks import slurm_findings

        yield from slurm_findings(settings)


def communication(settings: Settings) -> Iterator[Finding]:
    """How the members of a job talk to each other."""
    from prompttuner.worker.elastic.findings import elastic_findings

    for found in elastic_findings(settings.of_leases(), one_host=settings.backend == "local"):
        yield Finding(f"members: {found.topic}", Verdict(found.level), found.message)


def starts(settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """Allocations get as far as a loaded LLM."""
    from prompttuner.cli.state.trials import trial_lines, trial_views

    try:
        views = trial_views(time.time())
    except PromptTunerError:
        return  # the database's own check says what is wrong
    for line in trial_lines(views):
        yield Finding("starts", Verdict.WRONG, line)
    if not views["on_trial"]:
        yield Finding("starts", Verdict.OK, "no pool is paused")


CHECKS: list[Check] = [
    packages,
    folders,
    spool_delay,
    database,
    secrets,
    intervals,
    policy,
    backend,
    communication,
    starts,
]
"""In the order shown. A package with more to check appends its functions here (import what is heavy inside them)."""
