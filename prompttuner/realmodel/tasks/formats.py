"""Families *spelling* (letters of a word), *formats* (dates, money, names) and *classification* (what a word is)."""

from __future__ import annotations

import datetime
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from prompttuner.realmodel.tasks.packages import data_folder, require
from prompttuner.realmodel.tasks.pairs import Pair
from prompttuner.realmodel.tasks.words import common, counts, inflected

__all__ = ["CLASSIFICATIONS", "FORMATS", "SPELLINGS"]

ENOUGH = 600
"""Most words that a task draws on, the most usual ones."""
SENTIMENT_LIMIT = 0.3
"""Words below this absolute polarity are neither positive nor negative."""


def _of_words(change: Callable[[str], str]) -> Callable[[], Iterator[Pair]]:
    def make() -> Iterator[Pair]:
        for word in common("NN", "VB", "JJ", least=20)[:ENOUGH]:
            yield Pair(word, change(word), word)

    return make


SPELLINGS = {
    "first letter": _of_words(lambda word: word[0]),
    "last letter": _of_words(lambda word: word[-1]),
    "capitals": _of_words(str.upper),
    "capitalised": _of_words(str.capitalize),
    "spelt out": _of_words("-".join),
}


def _days() -> Iterator[datetime.date]:
    start = datetime.date(1950, 1, 1)
    for number in range(ENOUGH):
        yield start + datetime.timedelta(days=number * 47)


def _dates(given: str, wanted: str) -> Callable[[], Iterator[Pair]]:
    def make() -> Iterator[Pair]:
        for day in _days():
            yield Pair(day.strftime(given), day.strftime(wanted), day.isoformat())

    return make


def _money() -> Iterator[Pair]:
    for number in range(1, ENOUGH):
        yield Pair(f"{number} dollars", f"${number}.00", str(number))


FORMATS = {
    "date in words": _dates("%Y-%m-%d", "%d %B %Y"),
    "date in digits": _dates("%d %B %Y", "%Y-%m-%d"),
    "weekday": _dates("%A %d %B", "%a"),
    "month": _dates("%Y-%m-%d", "%B"),
    "money": _money,
}


def _sentiment() -> Iterator[Pair]:
    """Words whose senses agree, from the sentiment lexicon of textblob (De Smedt and Daelemans)."""
    polarity: dict[str, list[float]] = {}
    root = ET.parse(data_folder("textblob") / "en" / "en-sentiment.xml").getroot()  # noqa: S314 (a pinned package's file)
    for word in root.iter("word"):
        polarity.setdefault(word.attrib["form"], []).append(float(word.attrib["polarity"]))
    for text, values in polarity.items():
        mean = sum(values) / len(values)
        if text.isalpha() and abs(mean) >= SENTIMENT_LIMIT and text in counts():
            yield Pair(text, "positive" if mean > 0 else "negative", text)


def _parts_of_speech() -> Iterator[Pair]:
    for tag, name in (("NN", "noun"), ("VB", "verb"), ("JJ", "adjective")):
        for word in common(tag, least=20)[: ENOUGH // 3]:
            yield Pair(word, name, word)


def _number() -> Iterator[Pair]:
    for word, plural in inflected(common("NN", least=30)[:ENOUGH], "NNS"):
        yield Pair(word, "one", word)
        yield Pair(plural, "many", word)


def _tense() -> Iterator[Pair]:
    for word, past in inflected(common("VB", "VBP", least=10)[:ENOUGH], "VBD"):
        yield Pair(f"They {word}.", "present", word)
        yield Pair(f"They {past}.", "past", word)


@cache
def _engine() -> Any:
    require("inflect")
    import inflect

    return inflect.engine()


def _articles() -> Iterator[Pair]:
    vowels = [word for word in common("NN", least=5) if word[0] in "aeiouh"]
    others = [word for word in common("NN", least=20) if word[0] not in "aeiouh"]
    for word in [*vowels[: ENOUGH // 2], *others[: ENOUGH // 2]]:
        yield Pair(word, str(_engine().a(word)).split(" ")[0], word)


CLASSIFICATIONS = {
    "sentiment": _sentiment,
    "part of speech": _parts_of_speech,
    "one or many": _number,
    "tense": _tense,
    "article": _articles,
}
