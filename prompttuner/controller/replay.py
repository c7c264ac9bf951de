"""Replaying a trace against a live site: a frozen schedule in a folder, and submissions that can be cut off anywhere.

The folder holds ``schedule.json`` (written once) and ``submitted.jsonl`` (one line a submission). Job ids and request
ids are fixed in the schedule, so that a submission cut off between the two is repeated without harm: the controller
answers that it knows the job.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from prompttuner.config import Settings
from prompttuner.controller.requests import leave, new_job_id
from prompttuner.errors import NotFound, SpecError, StateError
from prompttuner.files import append_line, create_json, make_private_dir, read_json
from prompttuner.policy.contract.snapshot import PoolProfile
from prompttuner.policy.estimate import speed_table
from prompttuner.protocol.files import read_message, understood
from prompttuner.protocol.requests import NewJob, Reply, Submit
from prompttuner.protocol.spec import PacedSpec, ResolvedSpec
from prompttuner.slurm.spool import Spool
from prompttuner.spec import make_spec, resolve
from prompttuner.spec.when import iso
from prompttuner.trace.job import TraceJob
from prompttuner.worker.paced.model import write_paced_model

__all__ = ["Entry", "Replay", "Submitted", "schedule", "wait_and_submit"]

FORMAT = 2
ROOM = 1.25
"""A paced job may take this many times its true iterations before it counts as exhausted."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One submission to come."""

    trace_id: str
    job: str
    request: str
    at_s: float
    """Seconds after the replay's start."""
    slo_s: float | None
    """From submission to deadline; None for best effort."""
    spec: dict[str, Any]
    """Values of the job spec, and ``paced`` for a paced worker."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What one pass of a replay has submitted."""

    job: str
    trace_id: str
    at: float
    late_s: float
    """Behind the schedule."""


def schedule(
    jobs: Sequence[TraceJob],
    profiles: Mapping[str, PoolProfile],
    *,
    accelerate: float = 1.0,
    template: Mapping[str, Any] | None = None,
) -> list[Entry]:
    """Submissions by time.

    Args:
        profiles: by LLM, for the speed-up of paced workers.
        accelerate: divides gaps, deadlines and iterations alike; start-up and resize times stay real, so that the
            result is another workload, not the same one sooner.
        template: values of a job spec: real tuning jobs of this spec at the trace's times; None for paced workers.

    Raises:
        SpecError: a factor that is not above 0, or no jobs.
    """
    if not 0 < accelerate < math.inf:
        raise SpecError(f"--accelerate {accelerate:g}: must be above 0")
    if not jobs:
        raise SpecError("the trace holds no jobs")
    entries = []
    for job in sorted(jobs, key=lambda job: (job.submit_s, job.id)):
        values = dict(template) if template is not None else _paced(job, profiles[job.llm], accelerate)
        values.pop("deadline", None)
        values["name"] = re.sub(r"[^\w.:=+@ -]", "_", job.id)[:100]
        values.setdefault("priority", job.priority)
        values.setdefault("on_miss", "stop" if job.stop_on_miss else "continue")
        slo = None if job.best_effort else (job.deadline_s - job.submit_s) / accelerate
        entries.append(Entry(job.id, new_job_id(), uuid4().hex, job.submit_s / accelerate, slo, values))
    return entries


def _paced(job: TraceJob, profile: PoolProfile, accelerate: float) -> dict[str, Any]:
    iterations = max(1, round(job.iters / accelerate))
    return {
        "max_iterations": max(2, math.ceil(ROOM * iterations)),
        "min_gpus": job.min_gpus,
        "max_gpus": job.max_gpus,
        "batch_size": max(16, job.max_gpus),
        "paced": {
            "step_s": job.step_s,
            "speedup": list(speed_table(profile.speedup, job.max_gpus)[1:]),
            "iterations": iterations,
            "looked_up": max(1, round(iterations * job.bank_factor)),
            "lookup_s": profile.lookup_s,
            "accelerated": accelerate,
            "llm": job.llm,
            "start_s": profile.start_s,
            "switch_s": profile.switch_s,
        },
    }


class Replay:
    """A replay's folder. ``start`` writes the schedule, ``open`` goes on with one; both may be called by anybody."""

    def __init__(self, folder: Path) -> None:
        found = read_json(folder / "schedule.json")
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise NotFound(f"{folder} holds no replay of this version: start one with `prompttuner replay TRACE`")
        self.folder = folder
        self.begin = float(found["begin"])
        self.source = str(found["source"])
        self.accelerate = float(found["accelerate"])
        self.entries = [Entry(**entry) for entry in found["entries"]]
        self._done = set(self._journal())

    @classmethod
    def start(cls, folder: Path, entries: Sequence[Entry], source: str, accelerate: float, begin: float) -> Replay:
        """Freeze the schedule; times count from ``begin`` (Unix seconds).

        Raises:
            StateError: the folder holds a replay already.
        """
        make_private_dir(folder)
        plan = {
            "format": FORMAT,
            "begin": begin,
            "source": source,
            "accelerate": accelerate,
            "entries": [asdict(entry) for entry in entries],
        }
        if not create_json(folder / "schedule.json", plan):
            raise StateError(f"{folder} holds a replay already: go on with --resume, or name another --folder")
        return cls(folder)

    @property
    def left(self) -> list[Entry]:
        """Entries not submitted yet, by time."""
        return [entry for entry in self.entries if entry.job not in self._done]

    def next_at(self) -> float:
        """Unix time of the next submission; inf when all are done."""
        left = self.left
        return self.begin + left[0].at_s if left else math.inf

    def refused(self, settings: Settings) -> dict[str, str]:
        """What the controller said of submissions that it did not take, by id in the trace.

        Answers are kept for a day; one that was not given yet is missing.
        """
        spool = Spool(settings.spool_dir)
        out = {}
        for entry in self.entries:
            reply = understood(read_message(Reply, spool.reply(entry.request))) if entry.job in self._done else None
            if reply is not None and not reply.ok:
                out[entry.trace_id] = reply.message
        return out

    def submit_due(self, settings: Settings, now: float) -> list[Submitted]:
        """Leave a request for every entry that is due; deadlines count from now, and delays are told.

        Raises:
            SpecError, DataError, ModelError: a job's spec; nothing of it was left.
            SpoolError: the inbox cannot be written; go on later.
        """
        out = []
        for entry in self.left:
            if self.begin + entry.at_s > now:
                break
            leave(settings, Submit(id=entry.request, jobs=(NewJob(job=entry.job, spec=self._spec(entry, now)),)))
            done = Submitted(entry.job, entry.trace_id, now, max(0.0, now - self.begin - entry.at_s))
            append_line(self.folder / "submitted.jsonl", asdict(done))
            self._done.add(entry.job)
            out.append(done)
        return out

    def _spec(self, entry: Entry, now: float) -> ResolvedSpec:
        values = dict(entry.spec)
        paced = values.pop("paced", None)
        if paced is not None:
            train, evaluation = self._data()
            values.update(model="small", train=str(train), eval=str(evaluation), target="loss<=0.5")
        spec = resolve(make_spec(values, source=f"replay of {entry.trace_id}"), now)
        if entry.slo_s is not None:
            spec = replace(spec, deadline_at=now + entry.slo_s, deadline_iso=iso(now + entry.slo_s))
        if paced is None:
            return spec
        # a model of its own makes it a pool of its own, as its LLM would
        llm = str(paced["llm"])
        model = str(self._model(llm, paced["start_s"], paced["switch_s"]))
        return replace(spec, model_name=llm, model=model, paced=PacedSpec.expect(paced))

    def _model(self, llm: str, start_s: float, switch_s: float) -> Path:
        """The folder that stands in for an LLM, whose loads take these times; written once."""
        folder = (self.folder / "models" / re.sub(r"[^\w.-]", "_", llm)).absolute()
        return folder if (folder / "paced.json").exists() else write_paced_model(folder, start_s, switch_s)

    def _data(self) -> tuple[Path, Path]:
        """Data that paced workers name and never read; written once."""
        from prompttuner.smallmodel.tasks import write_dataset

        folder = self.folder / "data"
        if (folder / "eval.jsonl").exists() and (folder / "train.jsonl").exists():
            return folder / "train.jsonl", folder / "eval.jsonl"
        return write_dataset("reverse+upper", folder, train=64, evaluation=8)

    def _journal(self) -> list[str]:
        """Jobs submitted so far; a last line that was cut off counts as not submitted, and is submitted again."""
        try:
            lines = (self.folder / "submitted.jsonl").read_text().split("\n")
        except FileNotFoundError:
            return []
        records = []
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and "job" in record:
                records.append(str(record["job"]))
        return records


def wait_and_submit(
    replay: Replay,
    settings: Settings,
    tell: Callable[[list[Submitted]], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Submit everything at its time, until all is done. ``tell`` is called with each batch of ``Submitted``."""
    while replay.left:
        done = replay.submit_due(settings, time.time())
        if done:
            tell(done)
        if replay.left:
            sleep(min(max(replay.next_at() - time.time(), 0.01), 60.0))
