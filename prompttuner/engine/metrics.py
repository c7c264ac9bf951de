"""Metrics of generated answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

__all__ = ["GENERATED", "exact_match", "rouge_l"]


def exact_match(answer: str, target: str) -> float:
    """1 if the answer is the target, blanks at both ends aside. A target of which no text is left is never matched."""
    return float(answer.strip() == target.strip() != "")


def rouge_l(answer: str, target: str) -> float:
    """ROUGE-L F-measure (Lin, 2004) without stemming, by Google's rouge-score."""
    return float(_scorer().score(target, answer)["rougeL"].fmeasure)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


GENERATED: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match, "rougeL": rouge_l}
"""Metrics that need greedy generation; each is averaged over the evaluation samples."""
