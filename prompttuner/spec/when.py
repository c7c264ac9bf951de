"""Durations and points in time: what users write, and what is stored."""

from __future__ import annotations

import re
from datetime import UTC, datetime

__all__ = ["format_duration", "iso", "parse_deadline", "parse_duration"]

LONGEST_S = 10 * 365 * 86400

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?")
_USAGE = "write a duration (30m, 1h30m, 45s, 2d) or a time with its zone (2026-11-21T18:00+01:00)"


def parse_duration(text: str) -> float | None:
    """Seconds of ``30m``, ``1h30m``, ``2d``; None when the text has not this form."""
    match = _DURATION.fullmatch(re.sub(r"\s+", "", text.lower()))
    if match is None or not any(match.groups()):
        return None
    return sum(float(part) * unit for part, unit in zip(match.groups(), _UNITS.values(), strict=True) if part)


def parse_deadline(text: str, now: float) -> float:
    """Unix seconds of a deadline that is a duration from ``now`` or an ISO time with a zone.

    Raises:
        ValueError: neither of both, a time without a zone, or not in the future.
    """
    seconds = parse_duration(text)
    if seconds is not None:
        if not 0 < seconds <= LONGEST_S:
            raise ValueError(f"deadline {text!r} must lie ahead, by ten years at most; {_USAGE}; none is best effort")
        return now + seconds
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"deadline {text!r} cannot be read; {_USAGE}") from None
    if moment.tzinfo is None:
        raise ValueError(f"deadline {text!r} has no time zone; add one (Z, or an offset such as +01:00)")
    at = moment.timestamp()
    if at <= now:
        raise ValueError(
            f"deadline {text!r} is in the past (now: {iso(now)}); {_USAGE}, or leave it out for best effort"
        )
    return at


def iso(at: float) -> str:
    """ISO time in the local zone, with its offset, to the second."""
    return datetime.fromtimestamp(at, UTC).astimezone().isoformat(timespec="seconds")


def format_duration(seconds: float) -> str:
    """Short text of a duration: ``1h30m``, ``45s``, ``-2m10s``; what follows the two largest units is cut off."""
    sign, left = ("-", -seconds) if seconds < 0 else ("", seconds)
    rest = round(left)
    parts: list[str] = []
    for unit, size in _UNITS.items():
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
    return sign + ("".join(parts[:2]) or "0s")
