"""What past jobs tell: iterations to their targets, when jobs of each pool came, measured speeds and start-ups."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from prompttuner.controller.plan.iterations import sample_quantiles
from prompttuner.controller.resources import Resources
from prompttuner.db.queries import jobs as job_rows
from prompttuner.db.queries import profiles as profile_rows
from prompttuner.protocol.files import understood
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.states import JobState

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Arrived", "Experience", "History", "data_key"]

PAST_JOBS = 200
"""Latest jobs of a pool that reached their target, which predictions look at."""
ARRIVALS = 500
"""Latest submissions that forecasts look at, of all pools together."""
ARRIVALS_S = 30 * 86400.0
"""How far back they reach."""
HISTORY_S = 5.0
"""History is read again after this long."""
FORESEEN = 8
"""Pools without a job or an agent that are watched for their next arrivals: those used last."""
FEWEST = 4
"""Submissions below which nothing is foretold of such a pool."""


class DataKey(NamedTuple):
    """What data and target a job has."""

    train_sha256: str | None
    metric: str
    value: float


class Arrived(NamedTuple):
    """One submission."""

    at: float
    slack_s: float
    """To its deadline; inf for best effort."""
    work_s: float
    """GPU-seconds it took; nan where it has not ended by itself."""


@dataclass(slots=True)
class History:
    """Kept for a moment, as it changes slowly."""

    keys: tuple[str, ...]
    at: float
    itas: Mapping[Any, tuple[float, float]]
    arrivals: dict[str, list[Arrived]]
    """By pool key, ascending in time."""
    speeds: Sequence[Any]
    startups: Sequence[Any]

    def foreseen(self) -> set[str]:
        """Pools that may have jobs again soon."""
        return {key for key, rows in self.arrivals.items() if len(rows) >= FEWEST}


class Experience:
    """Reads what past jobs tell: four statements, at most every ``HISTORY_S``."""

    def __init__(self, resources: Resources) -> None:
        self._res = resources
        self._known: History | None = None

    def of(self, keys: tuple[str, ...]) -> History:
        """Of these pools, and of those that agents were last started for."""
        known, now = self._known, self._res.now()
        if known is not None and known.keys == keys and 0 <= now - known.at < HISTORY_S:
            return known

        def read(session: Session) -> History:
            startups = profile_rows.load_startups(session)
            watched = {*keys, *(_last_used(startups) if self._res.settings.prewarm else ())}
            return History(
                keys,
                now,
                _past_itas(job_rows.latest_reached(session, keys, PAST_JOBS)),
                _arrivals(job_rows.arrivals(session, watched, now - ARRIVALS_S, ARRIVALS)),
                profile_rows.load_speeds(session),
                startups,
            )

        self._known = self._res.state.query(read)
        return self._known


def _last_used(startups: Sequence[Any]) -> list[str]:
    used: dict[str, float] = {}
    for row in startups:
        used[row.pool] = max(used.get(row.pool, 0.0), row.updated_at)
    return sorted(used, key=lambda pool: (-used[pool], pool))[:FORESEEN]


def _arrivals(rows: Sequence[Any]) -> dict[str, list[Arrived]]:
    arrivals: dict[str, list[Arrived]] = defaultdict(list)
    for pool, at, deadline, spent_s, state in rows:
        slack = math.inf if deadline is None else deadline - at
        ended = state in {JobState.DONE, JobState.EXHAUSTED}
        arrivals[pool].append(Arrived(at, slack, spent_s if ended else math.nan))
    return arrivals


def data_key(spec: ResolvedSpec) -> DataKey:
    """Jobs with the same of these need similar numbers of iterations."""
    return DataKey(spec.train_sha256, spec.target.metric, spec.target.value)


def _past_itas(rows: Sequence[Any]) -> dict[Any, tuple[float, float]]:
    """(median, P90) by pool, and by pool and data."""
    known: dict[Any, list[float]] = defaultdict(list)
    for pool, value, ita in rows:
        known[pool].append(float(ita))
        spec = understood(ResolvedSpec.read(value))
        if spec is not None:
            known[pool, data_key(spec)].append(float(ita))
    return {key: sample_quantiles(values) for key, values in known.items()}
