"""Families *inflection* (walk -> walked), *lemma* (walked -> walk) and *derivation* (happy -> unhappy)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prompttuner.realmodel.tasks.pairs import Pair
from prompttuner.realmodel.tasks.words import common, counts, inflected, tag

__all__ = ["DERIVATIONS", "INFLECTIONS", "LEMMAS"]

VERBS, NOUNS, ADJECTIVES = ("VB", "VBP"), ("NN",), ("JJ",)
OTHER_FIRST = frozenset(
    ["don", "round", "dear", "let", "may", "might", "must", "shall", "should", "will", "would", "can", "could"]
)
"""Words whose usual meaning is another than the one that their form would be made of."""


def _forms(tags: tuple[str, ...], wanted: str, *, back: bool = False) -> Callable[[], Iterator[Pair]]:
    def make() -> Iterator[Pair]:
        least = 2 if wanted.startswith("JJ") else 5  # few adjectives are compared by an ending
        words = tuple(word for word in common(*tags, least=least) if word not in OTHER_FIRST)
        for word, made in inflected(words, wanted):
            yield Pair(made, word, word) if back else Pair(word, made, word)

    return make


INFLECTIONS = {
    "past": _forms(VERBS, "VBD"),
    "participle": _forms(VERBS, "VBN"),
    "gerund": _forms(VERBS, "VBG"),
    "third person": _forms(VERBS, "VBZ"),
    "plural": _forms(NOUNS, "NNS"),
    "comparative": _forms(ADJECTIVES, "JJR"),
    "superlative": _forms(ADJECTIVES, "JJS"),
}
LEMMAS = {
    "base of past": _forms(VERBS, "VBD", back=True),
    "base of gerund": _forms(VERBS, "VBG", back=True),
    "base of third person": _forms(VERBS, "VBZ", back=True),
    "singular": _forms(NOUNS, "NNS", back=True),
    "base of comparative": _forms(ADJECTIVES, "JJR", back=True),
}


def _adverbs() -> Iterator[Pair]:
    for word in common("JJ", least=3):
        made = f"{word[:-1]}ily" if word.endswith("y") else f"{word}ly"
        if tag(made) == "RB" and made in counts():
            yield Pair(word, made, word)


def _qualities() -> Iterator[Pair]:
    for word in common("JJ", least=3):
        made = f"{word[:-1]}iness" if word.endswith("y") else f"{word}ness"
        if made in counts():
            yield Pair(word, made, word)


def _negations() -> Iterator[Pair]:
    for made in common("JJ", "VBN", "VBD", least=1):
        word = made.removeprefix("un")
        if word != made and counts().get(word, 0) >= 3 and tag(word) in {"JJ", "VBN", "VBD"}:
            yield Pair(word, made, word)


def _agents() -> Iterator[Pair]:
    for word in common(*VERBS, "NN", least=5):
        made = f"{word}r" if word.endswith("e") else f"{word}er"
        if tag(word) in VERBS and tag(made) == "NN" and made in counts():
            yield Pair(word, made, word)


DERIVATIONS = {"adverb": _adverbs, "quality": _qualities, "negation": _negations, "agent": _agents}
