"""Family *sentences*: a whole short sentence is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prompttuner.realmodel.tasks.pairs import Pair
from prompttuner.realmodel.tasks.words import common, inflected

__all__ = ["SENTENCES"]

SUBJECTS = ("I", "You", "We", "They")


def _verbs(wanted: str) -> Iterator[tuple[str, str, str]]:
    """(subject, verb, inflected form)."""
    for number, (word, made) in enumerate(inflected(common("VB", "VBP", least=10), wanted)):
        yield SUBJECTS[number % len(SUBJECTS)], word, made


def _past() -> Iterator[Pair]:
    for who, word, past in _verbs("VBD"):
        yield Pair(f"{who} {word}.", f"{who} {past}.", word)


def _verb_task(make: Callable[[str, str], tuple[str, str]]) -> Callable[[], Iterator[Pair]]:
    def pairs() -> Iterator[Pair]:
        for who, word, _past_form in _verbs("VBD"):
            given, wanted = make(who, word)
            yield Pair(given, wanted, word)

    return pairs


def _lower(who: str) -> str:
    return who if who == "I" else who.lower()


def _quantities() -> Iterator[Pair]:
    for word, plural in inflected(common("NN", least=20), "NNS"):
        yield Pair(f"one {word}", f"two {plural}", word)


SENTENCES = {
    "past sentence": _past,
    "future sentence": _verb_task(lambda who, word: (f"{who} {word}.", f"{who} will {word}.")),
    "negated sentence": _verb_task(lambda who, word: (f"{who} {word}.", f"{who} do not {word}.")),
    "question": _verb_task(lambda who, word: (f"{who} {word}.", f"Do {_lower(who)} {word}?")),
    "two of it": _quantities,
}
