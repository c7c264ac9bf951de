"""What starts, switches, pauses and releases took in a live run, from its state and its agents' journals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePath
from statistics import fmean
from typing import Any, TypeAlias

from sqlalchemy import select
from sqlalchemy.orm import Session

from prompttuner.db.tables.models import Allocation, Event, Job, Lease
from prompttuner.policy.contract.snapshot import PoolProfile
from prompttuner.worker.membership import member_dir

__all__ = ["Samples", "Stint", "believed", "first_load", "means", "measure", "profiles_with", "stints_of"]

OWN = ("start", "switch")
"""Kinds that differ by LLM; the others are the site's."""
TIMES = ("queue", "start", "warm", "resize", "switch")
"""Kinds that a profile has."""

Samples: TypeAlias = dict[tuple[str, str], list[float]]
"""Seconds by (LLM, kind); kinds are those of ``TIMES`` and release."""


def measure(session: Session, jobs: Iterable[Job], spool: Path, poll_s: float) -> Samples:
    """Seconds of each start-up, pause and release that happened, by LLM and kind, as the simulator counts them.

    Where an order has to be heard first, the spool delay ``poll_s`` is taken off. ``queue``: from the intent of an
    allocation to the first word of its agent; ``start``: from there to the word that its LLM is loaded. ``switch``:
    from an order to the word that the other LLM is loaded. ``release``: from an order to the exit file. ``warm``: from
    a lease to its job's first step, and from the last step to the result in the spool. ``resize``: from the end of
    rank 0's last step in one generation to its first in the next.
    """
    out: Samples = defaultdict(list)
    for allocation in session.scalars(select(Allocation).where(Allocation.started_at.is_not(None))):
        _agent_times(out, allocation, _orders(session, allocation.uuid), spool / "agents" / allocation.uuid, poll_s)
    for job in jobs:
        stints = stints_of(session, job, spool)
        if not stints or job.started_at is None or job.finished_at is None:
            continue
        llm = PurePath(job.model).name
        begin = stints[0].first_at - stints[0].granted_at - poll_s
        out[llm, "warm"].append(max(0.0, begin + stints[-1].done_at - stints[-1].end_at))
        for one, after in pairwise(stints):
            if one.ended_at == after.granted_at:  # not paused in between
                out[llm, "resize"].append(max(0.0, after.first_at - one.end_at))
    return out


def _orders(session: Session, uuid: str) -> list[tuple[str, float]]:
    """(kind, time) of what the controller ordered an agent to do, in order."""
    kinds = ("allocation.switching", "release")
    query = select(Event.kind, Event.at).where(Event.allocation == uuid, Event.kind.in_(kinds)).order_by(Event.seq)
    return [(kind, at) for kind, at in session.execute(query)]


def _agent_times(
    out: Samples, allocation: Allocation, orders: Sequence[tuple[str, float]], folder: Path, poll_s: float
) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    llm = PurePath(settings["model"]).name  # that it was started for
    journal = list(_lines(folder / "journal.jsonl"))
    began = next((line["at"] for line in journal if line["event"] == "start"), None)
    loads = [line for line in journal if line["event"] == "load"]
    if began is not None:
        out[llm, "queue"].append(max(0.0, began - allocation.created_at - poll_s))
        if loads:
            out[llm, "start"].append(loads[0]["at"] - began)
    for kind, at in orders:
        if kind == "release" and (folder / "exit.json").exists():
            said = json.loads((folder / "exit.json").read_text())
            if said["reason"] == "released" and allocation.warm_at is not None:
                out[llm, "release"].append(max(0.0, said["at"] - at - poll_s))
        elif kind != "release":
            after = next((line for line in loads if line["at"] > at), None)
            if after is not None:
                out[PurePath(after["model"]).name, "switch"].append(max(0.0, after["at"] - at - poll_s))


def first_load(folder: Path) -> tuple[str, float | None]:
    """The LLM that the agent of this folder was started for, and when it was loaded (None: it was ended before)."""
    llm = PurePath(json.loads((folder / "settings.json").read_text())["model"]).name
    return llm, next((line["at"] for line in _lines(folder / "journal.jsonl") if line["event"] == "load"), None)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal; none where it was never begun."""
    return (json.loads(line) for line in path.read_text().splitlines()) if path.exists() else iter(())


@dataclass(frozen=True, slots=True)
class Stint:
    """Steps of one generation as its rank 0 journaled them."""

    granted_at: float
    ended_at: float | None
    first_at: float
    end_at: float
    """When its last step was done."""
    done_at: float
    """When its result was written; ``end_at`` if it was not."""


def stints_of(session: Session, job: Job, spool: Path) -> list[Stint]:
    """Generations of a job with steps, in order. A tuning job's last step is taken to end with its journal line."""
    paced = job.spec.get("paced")
    out = []
    query = select(Lease).where(Lease.job_id == job.id, Lease.rank == 0).order_by(Lease.generation)
    for lease in session.scalars(query):
        path = member_dir(spool / "jobs" / job.id, lease.generation, lease.allocation) / "journal.jsonl"
        steps = [line for line in _lines(path) if "step" in line]
        if steps:
            end_at = steps[-1]["at"]
            if paced is not None:
                end_at += paced["step_s"] / paced["speedup"][min(steps[-1]["world"], len(paced["speedup"])) - 1]
            done = path.with_name("done.json")
            done_at = max(end_at, done.stat().st_mtime) if done.exists() else end_at
            out.append(Stint(lease.granted_at, lease.ended_at, steps[0]["at"], end_at, done_at))
    return out


def means(samples: Samples, llm: str) -> dict[str, float]:
    """Mean seconds by kind, as far as there are samples: of this LLM where LLMs differ, else of all."""
    found: dict[str, list[float]] = defaultdict(list)
    for (name, kind), values in samples.items():
        if kind not in OWN or name == llm:
            found[kind] += values
    return {kind: max(0.0, fmean(values)) for kind, values in found.items()}


def profiles_with(samples: Samples, given: Mapping[str, PoolProfile]) -> dict[str, PoolProfile]:
    """The given profiles with the measured times; what did not occur stays as given."""
    out = {}
    for llm, profile in given.items():
        times: dict[str, Any] = {f"{kind}_s": s for kind, s in means(samples, llm).items() if kind in TIMES}
        out[llm] = replace(profile, **times, origin="benchmarks/fidelity.py")
    return out


def believed(startups: Iterable[Mapping[str, Any]], given: Mapping[str, PoolProfile]) -> dict[str, PoolProfile]:
    """The given profiles with the times of a controller's start-up profiles (rows of the store)."""
    out = dict(given)
    for row in startups:
        llm, times = PurePath(row["model"]).name, {f"{row['kind']}_s": row["seconds"]}
        out[llm] = replace(out[llm], **times, origin=row["origin"])
    return out
