"""What a report shows: one plain structure, filled from a live database or from a simulation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prompttuner.errors import DataError
from prompttuner.files import write_json

__all__ = ["JobBar", "ReportData", "Usage", "busy_by_pool", "load_data", "save_data", "steps"]

FORMAT = 1
UNSUCCESSFUL = frozenset({"rejected", "failed", "exhausted", "stopped"})
"""States in which a job with a deadline has missed it, whenever it ended."""


@dataclass(slots=True)
class JobBar:
    """One job. Times are seconds on the report's clock; a missing time is inf."""

    id: str
    pool: str
    submit_s: float
    start_s: float = math.inf
    end_s: float = math.inf
    deadline_s: float = math.inf
    state: str = "ended"
    """``ended`` (target reached), ``running``, ``waiting``, ``cancelled``, or one of ``UNSUCCESSFUL``."""
    name: str = ""
    spans: list[tuple[float, float, int]] = field(default_factory=list)
    """(begin, end, GPUs) while it held GPUs, ascending."""
    note: str = ""

    @property
    def gpu_s(self) -> float:
        """GPU-seconds held."""
        return sum((end - begin) * gpus for begin, end, gpus in self.spans)

    def verdict(self, now_s: float) -> str:
        """``met``, ``missed``, ``open`` (not decided yet) or ``best effort``."""
        if math.isinf(self.deadline_s):
            return "best effort"
        if self.state == "ended" and self.end_s <= self.deadline_s:
            return "met"
        if self.state == "cancelled" and self.end_s <= self.deadline_s:
            return "open"  # the user took it back in time: nobody's miss
        over = self.state == "ended" or self.state in UNSUCCESSFUL
        return "missed" if over or now_s > self.deadline_s else "open"


@dataclass(frozen=True, slots=True)
class Usage:
    """GPUs held from ``at_s`` on."""

    at_s: float
    busy: int
    starting: int
    idle: int


@dataclass(slots=True)
class ReportData:
    """Everything a report shows. ``epoch_s`` is the Unix time of 0 on its clock; 0 for virtual time."""

    title: str
    source: str
    """Where it comes from: a database, or policy and trace of a simulation."""
    begin_s: float
    end_s: float
    """Now, for a live database."""
    jobs: list[JobBar]
    usage: list[Usage]
    """Ascending in time; the last one holds until ``end_s``."""
    gpus: int = 0
    """Size of the cluster; 0 when not known."""
    epoch_s: float = 0.0
    pool_usage: dict[str, list[Usage]] = field(default_factory=dict)
    """Busy GPUs alone: an idle one may serve any pool next."""
    held: dict[str, float] = field(default_factory=dict)
    """GPU-seconds by kind where they were counted exactly; else they follow from ``usage``."""
    facts: dict[str, str] = field(default_factory=dict)
    """Further lines of the summary (policy, bound, settings)."""

    def cost(self) -> dict[str, float]:
        """GPU-seconds held: ``busy``, ``start-up``, ``warm-idle``."""
        if self.held:
            return dict(self.held)
        total = {"busy": 0.0, "start-up": 0.0, "warm-idle": 0.0}
        ends = [*(usage.at_s for usage in self.usage[1:]), self.end_s]
        for usage, until in zip(self.usage, ends, strict=False):
            span = max(0.0, until - usage.at_s)
            total["busy"] += usage.busy * span
            total["start-up"] += usage.starting * span
            total["warm-idle"] += usage.idle * span
        return total

    def verdicts(self) -> dict[str, int]:
        """Jobs by verdict."""
        counts = {"met": 0, "missed": 0, "open": 0, "best effort": 0}
        for job in self.jobs:
            counts[job.verdict(self.end_s)] += 1
        return counts


def steps(
    changes: Iterable[tuple[float, str, int]], kinds: tuple[str, ...] = ("busy", "starting", "idle")
) -> list[Usage]:
    """Usage over time from (time, kind, GPUs more or fewer), in any order."""
    held = dict.fromkeys(kinds, 0)
    out: list[Usage] = []
    for at, kind, delta in sorted(changes, key=lambda change: change[0]):
        held[kind] += delta
        usage = Usage(at, held["busy"], held["starting"], held["idle"])
        if out and out[-1].at_s == at:
            out[-1] = usage
        else:
            out.append(usage)
    return out


def busy_by_pool(jobs: Iterable[JobBar]) -> dict[str, list[Usage]]:
    """Busy GPUs over time by the pool of the job that held them, pools by name."""
    changes: dict[str, list[tuple[float, str, int]]] = {}
    for job in jobs:
        of_pool = changes.setdefault(job.pool, [])
        for begin, end, gpus in job.spans:
            of_pool += [(begin, "busy", gpus), (end, "busy", -gpus)]
    return {name: steps(of_pool) for name, of_pool in sorted(changes.items())}


def save_data(path: Path, data: ReportData) -> None:
    """Write as JSON; infinite times are null."""
    write_json(path, _plain({"format": FORMAT, **asdict(data)}))


def load_data(path: Path) -> ReportData:
    """Read what ``save_data`` wrote.

    Raises:
        DataError: not such a file.
    """
    try:
        raw = json.loads(path.read_text())
        if raw.pop("format") != FORMAT:
            raise DataError(f"{path} is of another version of prompttuner: write it again")
        raw["jobs"] = [_job(job) for job in raw["jobs"]]
        raw["usage"] = [Usage(**usage) for usage in raw["usage"]]
        raw["pool_usage"] = {name: [Usage(**u) for u in line] for name, line in raw["pool_usage"].items()}
        return ReportData(**raw)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a report's data ({error}); it is written by 'simulate --log'") from None


def _job(raw: dict[str, Any]) -> JobBar:
    for name in ("start_s", "end_s", "deadline_s"):
        raw[name] = math.inf if raw[name] is None else raw[name]
    raw["spans"] = [(begin, end, gpus) for begin, end, gpus in raw["spans"]]
    return JobBar(**raw)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
