"""What ``doctor`` says of a Slurm site and of these settings on it."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prompttuner.cli.doctor.findings import Finding, Verdict
from prompttuner.errors import BackendError, PromptTunerError
from prompttuner.spec.when import format_duration, iso

if TYPE_CHECKING:
    from prompttuner.config import Settings
    from prompttuner.protocol.spec import ResolvedSpec
    from prompttuner.slurm.site.site import Partition, Site

__all__ = ["slurm_findings"]

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun")
GREATEST_IDLE_LIMIT_S = 3600.0


def slurm_findings(settings: Settings) -> Iterator[Finding]:
    """Slurm itself, the chosen partition and limits, the shared folder, ticks, templates, maintenance."""
    from prompttuner.slurm.command import SlurmClient
    from prompttuner.slurm.site.site import detect_site

    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        text = f"not on PATH: {', '.join(missing)}; log in to a node that has Slurm, or load the site's module"
        yield Finding("slurm", Verdict.WRONG, text)
        return
    try:
        site = detect_site(SlurmClient(settings.slurm.call_timeout_s))
    except BackendError as error:
        yield Finding(
            "slurm", Verdict.WRONG, f"Slurm's controller does not answer: {error}; running jobs are not harmed"
        )
        return
    yield Finding("slurm", Verdict.OK, f"cluster {site.cluster}, Slurm {site.version}")
    yield from _partition(settings, site)
    yield from _limits(settings, site)
    yield from _accounting(settings, site)
    yield from _spool(settings, site)
    yield from _ticks(settings, site)
    yield from _maintenance(settings, site)
    yield from _templates(settings)
    yield from _would_be_taken(settings)
    yield from _paused(settings)
    for text in site.unknown:
        yield Finding("unknown", Verdict.ADVICE, f"could not be found out: {text}")


def _partition(settings: Settings, site: Site) -> Iterator[Finding]:
    name = settings.slurm.partition
    chosen = site.partition(name)
    if chosen is None:
        there = ", ".join(partition.name for partition in site.partitions) or "none can be seen"
        text = f"there is no partition {name!r}" if name else "no partition is set and the site has no default one"
        yield Finding("partition", Verdict.WRONG, f"{text}; set slurm.partition to one of: {there}")
        return
    if not chosen.up:
        yield Finding("partition", Verdict.WRONG, f"{chosen.name} is down: choose another with slurm.partition")
    kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(chosen.gpus.items())) or "no GPUs"
    preempted = "; jobs there may be preempted, agents are then replaced" if chosen.preemptable else ""
    yield Finding("partition", Verdict.OK, f"{chosen.name}: {kinds}{preempted}")
    yield from _gpus(settings, chosen)
    yield from _walltime(settings, chosen)
    yield from _memory(settings, chosen)


def _gpus(settings: Settings, chosen: Partition) -> Iterator[Finding]:
    kind, directive = settings.slurm.gpu_type, settings.slurm.gpu_directive
    if directive == "none":
        yield Finding("GPUs", Verdict.ADVICE, "allocations ask for no GPU (slurm.gpu_directive is none)")
    elif not chosen.gpus:
        text = f"{chosen.name} has no GPUs: set slurm.partition, or slurm.gpu_directive = 'none' to tune on CPUs"
        yield Finding("GPUs", Verdict.WRONG, text)
    elif kind is not None and kind not in chosen.gpus:
        yield Finding(
            "GPUs", Verdict.WRONG, f"{chosen.name} has no {kind}; slurm.gpu_type can be: {', '.join(chosen.gpus)}"
        )
    elif kind is None and len(chosen.gpus) > 1:
        text = f"{chosen.name} has {', '.join(sorted(chosen.gpus))}: set slurm.gpu_type, so that members are alike"
        yield Finding("GPUs", Verdict.ADVICE, text)
    if settings.slurm.gpus_per_agent > 1:
        text = "slurm.gpus_per_agent is above 1: one idle GPU in an allocation counts as waste at most sites"
        yield Finding("GPUs", Verdict.ADVICE, text)


def _walltime(settings: Settings, chosen: Partition) -> Iterator[Finding]:
    asked = settings.slurm.walltime_s
    if asked is not None and chosen.max_time_s is not None and asked > chosen.max_time_s:
        text = f"slurm.walltime_s ({format_duration(asked)}) is above the limit of {chosen.name}"
        yield Finding("walltime", Verdict.WRONG, f"{text}: at most {format_duration(chosen.max_time_s)}")
    else:
        wall = asked or chosen.walltime_s
        text = (
            "unlimited or unknown there: 4h is asked for" if wall is None else f"{format_duration(wall)} is asked for"
        )
        yield Finding("walltime", Verdict.OK, text)


def _memory(settings: Settings, chosen: Partition) -> Iterator[Finding]:
    """What agents of the waiting jobs need, beside what they are given."""
    from prompttuner.slurm.site.memory import needed_mb, size_mb, weights_bytes

    rule = chosen.memory
    given = rule.default_mb(settings.slurm.gpus_per_agent, settings.slurm.cpus_per_agent or 1)
    if settings.slurm.mem is not None:
        given = size_mb(settings.slurm.mem)
    most = rule.most_mb()
    for model, name in sorted(_models(settings).items()):
        weights = weights_bytes(model)
        if weights is None:
            continue
        need = needed_mb(weights)
        if most is not None and need > most:
            text = f"an agent with {name} needs about {need} MB, and {chosen.name} gives {most} at most"
            yield Finding("memory", Verdict.WRONG, text)
        elif settings.slurm.mem is not None and given is not None and given < need:
            text = f"slurm.mem = {settings.slurm.mem} is less than an agent with {name} needs: set {need}M, or none"
            yield Finding("memory", Verdict.WRONG, text)
    if settings.slurm.mem is None and rule.enforced:
        text = "nothing" if given is None else f"{given} MB"
        yield Finding(
            "memory", Verdict.OK, f"the site gives {text} by default; allocations ask for what their LLM needs"
        )


def _models(settings: Settings) -> dict[str, str]:
    """LLMs of jobs that have not ended: folder or hub id -> name."""
    return {spec.model: spec.model_name or spec.model for spec in _active_specs(settings)}


def _limits(settings: Settings, site: Site) -> Iterator[Finding]:
    limits = site.limits_in(site.partition(settings.slurm.partition))
    if settings.slurm.account and limits.accounts and settings.slurm.account not in limits.accounts:
        text = f"you may not use account {settings.slurm.account}; yours: {', '.join(limits.accounts)}"
        yield Finding("account", Verdict.WRONG, text)
    if settings.slurm.qos and limits.qos and settings.slurm.qos not in limits.qos:
        text = f"you may not use QOS {settings.slurm.qos}; yours: {', '.join(limits.qos)}"
        yield Finding("QOS", Verdict.WRONG, text)
    jobs = min((number for number in (limits.jobs, limits.submitted) if number is not None), default=None)
    for what, key, mine, theirs in (
        ("GPUs", "max_gpus", settings.max_gpus, limits.gpus),
        ("jobs", "max_jobs", settings.max_jobs, jobs),
    ):
        if theirs is not None and (mine is None or mine > theirs):
            text = f"the site allows you {theirs} {what}: set {key} = {theirs} or less"
            yield Finding("limits", Verdict.ADVICE, text)
        elif mine is None:
            text = f"no limit on your {what} is known: set {key}, so that no mistake can ask for more"
            yield Finding("limits", Verdict.ADVICE, text)
        else:
            yield Finding("limits", Verdict.OK, f"at most {mine} {what}")


def _accounting(settings: Settings, site: Site) -> Iterator[Finding]:
    if site.accounting and shutil.which("sacct"):
        yield Finding("accounting", Verdict.OK, "sacct is asked about jobs that have left the queue")
    elif settings.slurm.accounting == "yes":
        text = "slurm.accounting is yes, but the site has none: set it to auto"
        yield Finding("accounting", Verdict.WRONG, text)
    else:
        yield Finding("accounting", Verdict.OK, "none: squeue, scontrol and the agents' exit files are used instead")


def _spool(settings: Settings, site: Site) -> Iterator[Finding]:
    from prompttuner.db.store.place import NETWORK_FILE_SYSTEMS, file_system_of

    folder = settings.spool_dir
    kind = file_system_of(folder)
    elsewhere = sorted(set(site.hosts) - {socket.gethostname(), socket.gethostname().split(".")[0]})
    if kind in NETWORK_FILE_SYSTEMS:
        delay = " (changes are seen within about a second: polled files are re-opened)" if "nfs" in str(kind) else ""
        yield Finding("spool", Verdict.OK, f"{folder} is on {kind}{delay}")
    elif elsewhere:
        text = f"{folder} is on a local disk ({kind}) that {elsewhere[0]} cannot see: set spool to a shared folder"
        yield Finding("spool", Verdict.WRONG, text)
    else:
        yield Finding("spool", Verdict.OK, f"{folder} is local ({kind}), and so are all nodes")


def _ticks(settings: Settings, site: Site) -> Iterator[Finding]:
    if settings.idle_limit_s >= GREATEST_IDLE_LIMIT_S:
        yield Finding("ticks", Verdict.WRONG, "idle_limit_s must be below an hour: sites end idle GPU jobs, and people")
    if settings.tick_s > settings.idle_limit_s / 2:
        text = f"tick_s is above half the idle limit: lower it to at most {format_duration(settings.idle_limit_s / 2)}"
        yield Finding("ticks", Verdict.WRONG, text)
    if site.scron:
        text = "scrontab is available: `prompttuner cron install`"
    elif shutil.which("crontab"):
        text = "cron is here: `prompttuner cron install`, if the site allows it"
    else:
        text = "neither scrontab nor cron: `prompttuner run`, or `prompttuner controller start --in-slurm`"
    yield Finding("ticks", Verdict.OK, text)


def _maintenance(settings: Settings, site: Site) -> Iterator[Finding]:
    now = time.time()
    chosen = site.partition(settings.slurm.partition)
    wall = settings.slurm.walltime_s or (chosen.walltime_s if chosen else None) or 4 * 3600.0
    for reservation in site.reservations:
        if reservation.maintenance and reservation.end_at > now and reservation.start_at < now + wall:
            left = reservation.start_at - now
            text = f"maintenance {reservation.name} begins {iso(reservation.start_at)}"
            if left > 3600:
                text += f": allocations start before it only with slurm.walltime_s = {int(left // 3600)}h or less"
            yield Finding("maintenance", Verdict.ADVICE, text)


def _templates(settings: Settings) -> Iterator[Finding]:
    from prompttuner.cli.running.render import rendered_agent

    folder = settings.slurm.templates or settings.home / "templates"
    try:
        rendered_agent(settings)
    except PromptTunerError as error:
        yield Finding("templates", Verdict.WRONG, str(error))
        return
    own = sorted(path.name for path in folder.glob("*.j2")) if folder.is_dir() else []
    text = f"own ones in {folder}: {', '.join(own)}" if own else f"as shipped (own ones would lie in {folder})"
    yield Finding("templates", Verdict.OK, text)


def _would_be_taken(settings: Settings) -> Iterator[Finding]:
    """Ask Slurm with the very script, for each pool that jobs and agents need."""
    from prompttuner.cli.running.render import EXAMPLE_UUID
    from prompttuner.slurm.backend import AllocationRequest
    from prompttuner.slurm.refusals import what_to_set
    from prompttuner.slurm.slurm_backend import SlurmBackend

    backend = SlurmBackend(settings)
    folder = settings.spool_dir / "agents" / EXAMPLE_UUID
    for name, gpu_type, setup in _pools(settings):
        request = AllocationRequest(EXAMPLE_UUID, folder, name, settings.slurm.gpus_per_agent, gpu_type, None, setup)
        try:
            backend.test_only(request)
        except PromptTunerError as error:
            text = f"Slurm would refuse an allocation of {name}: {error}; {what_to_set(str(error))}"
            yield Finding("submission", Verdict.WRONG, text)
        else:
            yield Finding("submission", Verdict.OK, f"Slurm would take an allocation of {name} (sbatch --test-only)")


def _active_specs(settings: Settings) -> list[ResolvedSpec]:
    from prompttuner.db import Store
    from prompttuner.db.queries import jobs
    from prompttuner.errors import DatabaseError
    from prompttuner.protocol.files import understood
    from prompttuner.protocol.spec import ResolvedSpec

    try:
        with Store.open(settings.database_url, read_only=True) as store:
            values = store.query(jobs.active_specs).values()
    except DatabaseError:
        return []  # the database's own check says what is wrong
    return [spec for value in values if (spec := understood(ResolvedSpec.read(value))) is not None]


def _pools(settings: Settings) -> list[tuple[str, str | None, tuple[str, ...]]]:
    """(name, GPU type, set-up) of what allocations are asked for: by the settings alone, and by waiting jobs."""
    from prompttuner.controller.plan.pools import pool_of

    found: dict[tuple[str | None, tuple[str, ...]], str] = {(None, ()): "a job without wishes of its own"}
    for spec in _active_specs(settings):
        pool = pool_of(spec)
        found.setdefault((pool.gpu_type, pool.setup), f"pool {pool.key}")
    return [(name, gpu_type, setup) for (gpu_type, setup), name in found.items()]


def _paused(settings: Settings) -> Iterator[Finding]:
    """Submissions that pause after failures in a row."""
    from prompttuner.controller.act.gate import Gate

    gate = Gate.of(settings)
    problem = gate.problem(time.time())
    if problem is None and (refusal := gate.refusal()) is not None:
        yield Finding("submissions", Verdict.ADVICE, refusal)
    if problem:
        yield Finding("submissions", Verdict.WRONG, problem)
    if "SLURM_JOB_ID" in os.environ:
        text = "this is inside a Slurm job; its variables are kept away from what is submitted from here"
        yield Finding("environment", Verdict.OK, text)
