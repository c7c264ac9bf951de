"""English words with their counts and parts of speech, from the data files of textblob, and their inflected forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from prompttuner.realmodel.tasks.packages import data_folder, require

__all__ = ["common", "counts", "form", "inflected", "tag"]

Inflect = Callable[[str, str], tuple[str, ...]]


@cache
def counts() -> dict[str, int]:
    """How often each of 29,000 lower-case words occurs in a body of books."""
    lines = (data_folder("textblob") / "en" / "en-spelling.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split() for line in lines if line and not line.startswith(";;;"))
    return {word: int(count) for word, count in pairs}


@cache
def _tags() -> dict[str, str]:
    lines = (data_folder("textblob") / "en" / "en-lexicon.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.split(" ") for line in lines if line and not line.startswith(";;;"))
    return {row[0]: row[1] for row in rows if len(row) > 1}


def tag(word: str) -> str:
    """A word's most usual part of speech as a Penn Treebank tag; empty for an unknown word."""
    return _tags().get(word, "")


@cache
def common(*tags: str, least: int = 5) -> tuple[str, ...]:
    """Words of three letters and more with these tags that occur at least so often, the most usual first."""
    found = [w for w, n in counts().items() if n >= least and len(w) > 2 and w.isalpha() and tag(w) in tags]
    return tuple(sorted(found, key=lambda word: (-counts()[word], word)))


def form(word: str, wanted: str) -> str:
    """A word's inflected form for a Penn Treebank tag; empty where there is none, or more than one."""
    forms = _inflect()(word, wanted)
    return forms[0] if len(forms) == 1 and forms[0] != word else ""


@cache
def _inflect() -> Inflect:
    require("lemminflect")
    import lemminflect

    def inflect(word: str, wanted: str) -> tuple[str, ...]:
        forms: tuple[str, ...] = lemminflect.getInflection(word, wanted, inflect_oov=False)
        return forms

    return inflect


def inflected(words: tuple[str, ...], wanted: str) -> Iterator[tuple[str, str]]:
    """(word, form) of each word that has exactly one such form, which itself occurs in the word counts."""
    for word in words:
        made = form(word, wanted)
        if made in counts():
            yield word, made
