"""Metrics of generated answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

__all__ = ["GENERATED", "HOPELESS", "cannot_match", "exact_match", "rouge_l"]


def exact_match(answer: str, target: str) -> float:
    """1 if the answer is the target, blanks at both ends aside. A target of which no text is left is never matched."""
    return float(answer.strip() == target.strip() != "")


def cannot_match(begin: str, target: str) -> bool:
    """Whether no answer that begins like this can be an exact match.

    What the end of ``begin`` looks like is not final: a character may be incomplete, and some tokenizers take blanks
    before punctuation away.
    """
    return not target.strip().startswith(begin.rstrip("\ufffd").strip())


def rouge_l(answer: str, target: str) -> float:
    """ROUGE-L F-measure (Lin, 2004) without stemming, by Google's rouge-score."""
    return float(_scorer().score(target, answer)["rougeL"].fmeasure)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


GENERATED: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match, "rougeL": rouge_l}
"""Metrics that need greedy generation; each is averaged over the evaluation samples."""

HOPELESS: dict[str, Callable[[str, str], bool]] = {"exact_match": cannot_match}
"""(answer so far, target) -> whether nothing that follows can change the metric; such answers are not written on."""
