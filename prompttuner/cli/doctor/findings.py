"""What a check of ``doctor`` says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Verdict"]


class Verdict(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    ADVICE = "advice"
    """Works, but could go better."""
    WRONG = "WRONG"
    """Will not work, or not safely: ``doctor`` exits with 1."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check looked at, with what to do about it."""

    what: str
    verdict: Verdict
    text: str
    """In words: what was found, and what to do where it is not well."""
