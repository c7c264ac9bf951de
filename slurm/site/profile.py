"""From what a site is like to settings for it, in words too. Pure: what is unknown is answered conservatively."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prompttuner.slurm.site.memory import needed_mb
from prompttuner.slurm.site.site import GPU_MEMORY_GB, SHORT_S, Partition, Site
from prompttuner.slurm.site.waits import Waits
from prompttuner.spec.when import format_duration
from prompttuner.words import Counted

__all__ = ["Proposal", "gpu_memory_gb", "propose", "to_toml"]

CAUTIOUS_GPUS = 4
CAUTIOUS_JOBS = 20
CAUTIOUS_SUBMISSIONS = 10
"""A minute; the strictest published limit known to the authors (ULHPC)."""
CAUTIOUS_SQUEUE_S = 30.0
IDLE_LIMIT_S = 600.0
USUAL_WALLTIME_S = 4 * 3600.0
"""Asked for where nothing was measured: many jobs long, and short enough for gaps in the schedule."""
LONGEST_S = 24 * 3600.0
"""Never asked for more: an agent hands its job over without loss, so longer ones only wait longer."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Settings for a site, and why."""

    settings: Mapping[str, Any]
    """Nested as in config.toml."""
    words: tuple[str, ...]
    """What was found and what prompttuner will do, one sentence each."""


def gpu_memory_gb(kind: str) -> int | None:
    """Memory of a GPU type, from a size in its name (``a100_80gb``), else the smallest sold; None when unknown."""
    name = kind.lower()
    size = re.search(r"(\d{2,3})\s?gb?(?![a-z0-9])", name) or re.search(r"[_.-](\d{2,3})$", name)
    if size:
        return int(size.group(1))
    words = re.sub(
        r"[^a-z0-9]+", " ", name.replace("nvidia", " ").replace("tesla", " ").replace("geforce", " ")
    ).split()
    for word in [*words, "".join(words)]:
        if word in GPU_MEMORY_GB:
            return GPU_MEMORY_GB[word]
    return None


def propose(site: Site, environment: Mapping[str, str], has_crontab: bool, partition: str | None = None) -> Proposal:
    """Settings for a site.

    Args:
        site: what Slurm tells.
        environment: variables of the user, for their usual account.
        has_crontab: there is a ``crontab`` command here.
        partition: chosen by the user; None chooses.
    """
    words = [f"Cluster {site.cluster}, Slurm {site.version}."]
    slurm: dict[str, Any] = {}
    chosen = site.partition(partition) if partition else next(iter(site.gpu_partitions()), None)
    usual = site.partition(None)
    if partition is None and chosen is not None and usual is not None and usual.gpus and usual.name != chosen.name:
        words.append(
            f"The default partition {usual.name} ends jobs after {format_duration(usual.max_time_s or 0.0)}: "
            f"{chosen.name} is taken instead."
        )
    slurm.update(_partition(site, chosen, words))
    slurm.update(_account(site, environment, words))
    slurm["accounting"] = "yes" if site.accounting else "no"
    words.append(
        "Ends of jobs are looked up in accounting (sacct)."
        if site.accounting
        else "There is no accounting: ends of jobs are taken from squeue, scontrol and the agents' own exit files."
    )
    slurm["offline"] = True
    words.append(
        "Whether compute nodes reach the internet is unknown, so agents run with HF_HUB_OFFLINE=1: get models with "
        "`prompttuner fetch` first, or set slurm.offline = false."
    )
    idle_limit_s = min(IDLE_LIMIT_S, slurm.get("walltime_s", USUAL_WALLTIME_S) / 4)
    top: dict[str, Any] = {"backend": "slurm", "idle_limit_s": idle_limit_s, "squeue_min_s": CAUTIOUS_SQUEUE_S}
    top.update(_caps(site, chosen, words))
    words.append(
        f"An agent without a job ends itself after {format_duration(idle_limit_s)}; Slurm is asked at most every "
        f"{CAUTIOUS_SQUEUE_S:.0f} s, in one call for all jobs."
    )
    words.append(_ticks(site, has_crontab))
    words += [f"Could not be found out: {text}" for text in site.unknown]
    return Proposal({**top, "slurm": slurm}, tuple(words))


def to_toml(settings: Mapping[str, Any], comments: tuple[str, ...] = ()) -> str:
    """A config.toml: plain values first, then one table for each group."""
    lines = [f"# {comment}" for comment in comments]
    lines += [f"{key} = {_value(value)}" for key, value in settings.items() if not isinstance(value, Mapping)]
    for key, group in settings.items():
        if isinstance(group, Mapping) and group:
            lines += ["", f"[{key}]"]
            lines += [f"{name} = {_value(value)}" for name, value in group.items()]
    return "\n".join(lines) + "\n"


def _partition(site: Site, chosen: Partition | None, words: list[str]) -> dict[str, Any]:
    if chosen is None:
        words.append("No partition with GPUs was found: allocations ask for none; set slurm.partition if there is one.")
        return {"gpu_directive": "none"}
    found: dict[str, Any] = {"partition": chosen.name, "gpu_directive": "gres" if chosen.gpus else "none"}
    kinds = {kind: count for kind, count in chosen.gpus.items() if kind != "gpu"}
    if kinds:
        kind = max(kinds, key=lambda name: (kinds[name], name))
        memory = gpu_memory_gb(kind)
        found["gpu_type"] = kind
        words.append(
            f"Partition {chosen.name}: {', '.join(f'{count} x {name}' for name, count in sorted(kinds.items()))}. "
            f"Allocations ask for one {kind}" + (f" ({memory} GB)." if memory else "; its memory is unknown.")
        )
    else:
        total = sum(chosen.gpus.values())
        words.append(
            f"Partition {chosen.name}: {Counted(total, 'GPU')} of an unnamed type. Allocations ask for one each."
        )
    if chosen.preemptable:
        words.append("Jobs there may be preempted: agents are replaced, tuning goes on from the last checkpoint.")
    found["walltime_s"] = _walltime(site, chosen, words)
    words += _memory(chosen)
    return found


def _walltime(site: Site, chosen: Partition, words: list[str]) -> float:
    """Short enough that the scheduler fills gaps with it, long enough for many jobs."""
    walls = [wall for wall in (chosen.max_time_s, site.limits_in(chosen).walltime_s) if wall is not None]
    most = min(walls, default=None)
    if most is not None and most <= USUAL_WALLTIME_S:
        text = f"Allocations ask for {format_duration(most)}, the most that is allowed."
        if most < SHORT_S:
            text += " That is little: an LLM is loaded again for each; name another partition with --partition."
        words.append(text)
        return most
    measured = site.waits.get(chosen.name, Waits()).longest_without_waiting(USUAL_WALLTIME_S)
    if measured is not None:
        asked, wait = min(measured[0], most or LONGEST_S, LONGEST_S), measured[1]
        words.append(
            f"Allocations ask for {format_duration(asked)}: jobs of that length waited {format_duration(wait)} (median "
            "of the last week), no longer than shorter ones."
        )
        return asked
    words.append(
        f"Allocations ask for {format_duration(USUAL_WALLTIME_S)}, not for the most that is allowed: a scheduler fills "
        "gaps with short jobs first. A job that lasts longer is handed over to the next allocation."
    )
    return USUAL_WALLTIME_S


def _memory(chosen: Partition) -> list[str]:
    """What the site gives by default beside what an agent needs."""
    rule, need = chosen.memory, needed_mb(None)
    given = rule.default_mb(1, 1)
    if rule.to_ask(need, 1, 1) is None:
        return []
    gives = "all memory of a node" if given is None else f"{given} MB"
    words = [
        f"Slurm gives an allocation {gives} unless it asks; an agent needs about 2 GB and twice its LLM's weights. "
        "Each allocation asks for that by itself; slurm.mem sets another figure for all."
    ]
    most = rule.most_mb()
    if most is not None and most < need:
        words.append(f"No more than {most} MB may be asked for there: LLMs with larger weights do not fit.")
    return words


def _account(site: Site, environment: Mapping[str, str], words: list[str]) -> dict[str, Any]:
    usual = environment.get("SBATCH_ACCOUNT") or environment.get("SLURM_ACCOUNT")
    if usual and (usual in site.limits.accounts or not site.limits.accounts):
        words.append(f"Jobs are charged to {usual} (from your environment).")
        return {"account": usual}
    if len(site.limits.accounts) > 1:
        words.append(
            f"You may use the accounts {', '.join(site.limits.accounts)}; Slurm's default is taken unless you set "
            "slurm.account."
        )
    return {}


def _caps(site: Site, chosen: Partition | None, words: list[str]) -> dict[str, Any]:
    there = sum(chosen.gpus.values()) if chosen else 0
    limits = site.limits_in(chosen)
    gpus = limits.gpus
    if gpus is None:
        gpus = min(CAUTIOUS_GPUS, there) if there else CAUTIOUS_GPUS
        words.append(f"No limit on your GPUs is known: {gpus} at most at a time until you set max_gpus.")
    else:
        words.append(f"You may hold {Counted(gpus, 'GPU')} at a time.")
    allowed = [number for number in (limits.jobs, limits.submitted) if number is not None]
    jobs = max(1, min(allowed) // 2) if allowed else CAUTIOUS_JOBS
    words.append(
        f"At most {Counted(jobs, 'allocation')} at a time"
        + (" (half of your job limit)" if allowed else "")
        + f", and at most {CAUTIOUS_SUBMISSIONS} asked for in a minute."
    )
    return {"max_gpus": gpus, "max_jobs": jobs, "max_submissions_per_minute": CAUTIOUS_SUBMISSIONS}


def _ticks(site: Site, has_crontab: bool) -> str:
    if site.scron:
        return "Ticks: scrontab is available (`prompttuner cron install` uses it)."
    if has_crontab:
        return "Ticks: `prompttuner cron install` uses cron, where the site allows it; else `prompttuner run`."
    return "Ticks: neither scrontab nor cron here; use `prompttuner run` or `prompttuner controller start --in-slurm`."


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) and value.is_integer() and value < 1e6 else repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)
