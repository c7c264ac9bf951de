"""How often Slurm may be asked and told something: the site's limits, with their state kept in a file between ticks."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path

from prompttuner.config import Settings
from prompttuner.files import read_json, write_json
from prompttuner.slurm.limits import Allowance, Breaker, HardCaps, TokenBucket, allowance

__all__ = ["Gate"]

LIMIT_KNOWN_S = 3600.0
"""A limit that Slurm has named is believed so long; then one more try shows whether it still holds."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """GPUs that can be held at a time, as Slurm's reason for a waiting allocation has shown."""

    gpus: int
    why: str
    at: float

    @classmethod
    def restored(cls, value: object) -> _Limit | None:
        """From gate.json; None if it makes no sense."""
        match value:
            case {"gpus": int(gpus), "why": str(why), "at": float(at) | int(at)} if gpus > 0:
                return cls(gpus, why, float(at))
        return None


class Gate:
    """Token bucket, breaker and hard caps of one user. Times are Unix seconds of the caller's clock."""

    def __init__(self, file: Path, settings: Settings) -> None:
        rate = settings.max_submissions_per_minute
        self._file = file
        self._bucket = TokenBucket(rate, burst=rate)
        self._breaker = Breaker()
        self._caps = HardCaps(settings.max_gpus or float("inf"), settings.max_jobs or float("inf"))
        value = read_json(file)
        kept = {key: part for key, part in value.items() if isinstance(part, dict)} if isinstance(value, dict) else {}
        self._bucket.restore(kept.get("bucket"))
        self._breaker.restore(kept.get("breaker"))
        asked = value.get("asked_at") if isinstance(value, dict) else None
        self._asked_at = float(asked) if isinstance(asked, int | float) else None
        self._limit = _Limit.restored(kept.get("limit"))

    @classmethod
    def of(cls, settings: Settings) -> Gate:
        """As it stands in the spool now; nothing is written."""
        return cls(settings.spool_dir / "gate.json", settings)

    def may_ask(self, now: float, gap_s: float) -> bool:
        """Whether the last question to Slurm, whichever process put it, is long enough ago; True counts as one."""
        if self._asked_at is not None and 0 <= now - self._asked_at < gap_s:
            return False
        self._asked_at = now
        if gap_s > 0:
            self._save(durable=False)
        return True

    def allowance(self, now: float, held_gpus: int, held_jobs: int, gpus_each: int) -> Allowance:
        """Submissions allowed at once, and what keeps them from being more."""
        return allowance(
            now,
            self._bucket,
            self._breaker,
            self._caps,
            held_gpus=held_gpus,
            held_jobs=held_jobs,
            gpus_each=gpus_each,
        )

    def problem(self, now: float) -> str | None:
        """Why submissions pause, for `doctor` and `pool`; None when all is well."""
        return self._breaker.describe(now)

    def learn_limit(self, now: float, gpus: int, why: str) -> None:
        """Slurm starts nothing more while so many GPUs are held, by a limit that it names."""
        known = self._limit
        self._limit = _Limit(gpus, why, now)
        if known is None or (known.gpus, known.why) != (gpus, why) or not 0 <= now - known.at < 60.0:
            self._save()
        else:
            self._limit = known

    def known_limit(self, now: float, held: int) -> tuple[int, str] | None:
        """(GPUs, Slurm's reason) of the limit learned last; None if there is none, it is old, or more are held now."""
        limit = self._limit
        if limit is not None and (held > limit.gpus or not 0 <= now - limit.at < LIMIT_KNOWN_S):
            self._limit = limit = None
            self._save()
        return None if limit is None else (limit.gpus, limit.why)

    def submitted(self, now: float) -> None:
        """One submission was taken."""
        self._bucket.take(now)
        self._breaker.success()
        self._save()

    def failed(self, now: float, reason: str, *, blocks: bool = False) -> None:
        """One submission failed: after a few in a row, or at once if it ``blocks`` ticks, all pause, ever longer."""
        self._bucket.take(now)
        self._breaker.failure(now, reason, at_once=blocks)
        self._save()

    def refusal(self) -> str | None:
        """The last submission's failure, when it was and what to set; None once one was taken again."""
        return self._breaker.refusal()

    def _save(self, *, durable: bool = True) -> None:
        value = {
            "bucket": self._bucket.to_json(),
            "breaker": self._breaker.to_json(),
            "asked_at": self._asked_at,
            "limit": None if self._limit is None else asdict(self._limit),
        }
        with contextlib.suppress(OSError):  # a lost count makes us slower or quicker by a few submissions, no more
            write_json(self._file, value, durable=durable)
