"""All real-language tasks by name, and their data sets as files.

    python -m prompttuner.realmodel.tasks.registry FOLDER [--task NAME ...] [--seed N]

A task is the same on every machine: its words come from packages of pinned versions, and are dealt out to train, eval
and test by a hash. Nothing of the packages is stored in this repository.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prompttuner.errors import NotFound, PromptTunerError
from prompttuner.files import make_private_dir, write_bytes
from prompttuner.realmodel.tasks.countries import COUNTRIES
from prompttuner.realmodel.tasks.formats import CLASSIFICATIONS, FORMATS, SPELLINGS
from prompttuner.realmodel.tasks.inflection import DERIVATIONS, INFLECTIONS, LEMMAS
from prompttuner.realmodel.tasks.instructions import INSTRUCTIONS
from prompttuner.realmodel.tasks.numbers import NUMBERS
from prompttuner.realmodel.tasks.packages import LICENCES, PINNED
from prompttuner.realmodel.tasks.pairs import SPLITS, Pair, deal, unique
from prompttuner.realmodel.tasks.sentences import SENTENCES

__all__ = ["FAMILIES", "TASKS", "TEMPLATE", "Files", "Task", "get", "write_dataset"]

TEMPLATE = "{input} ->{target}"
"""Job specs of these tasks use it; targets begin with a blank, as SmolLM2's tokenizer has words."""


@dataclass(frozen=True)
class Task:
    """A function in words; ``make`` gives all its pairs."""

    name: str
    family: str
    make: Callable[[], Iterator[Pair]]

    @property
    def instruction(self) -> str:
        """What a user would write as a text prompt."""
        return INSTRUCTIONS[self.name]

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return self.name.replace(" ", "-").lower()

    def splits(self, seed: int, sizes: dict[str, int]) -> dict[str, list[Pair]]:
        """Pairs by split (see `deal`).

        Raises:
            DataError: a package is missing or of another version.
        """
        return deal(self.name, unique(self.make()), seed, sizes)


@dataclass(frozen=True)
class Files:
    """Where a task's data sets are."""

    train: Path
    eval: Path
    test: Path


FAMILIES: dict[str, dict[str, Callable[[], Iterator[Pair]]]] = {
    "inflection": INFLECTIONS,
    "lemma": LEMMAS,
    "derivation": DERIVATIONS,
    "numbers": NUMBERS,
    "countries": COUNTRIES,
    "spelling": SPELLINGS,
    "formats": FORMATS,
    "classification": CLASSIFICATIONS,
    "sentences": SENTENCES,
}
TASKS = {name: Task(name, family, make) for family, made in FAMILIES.items() for name, make in made.items()}


def get(name: str) -> Task:
    """The task called ``name``.

    Raises:
        NotFound: no such task; the message lists all.
    """
    if name not in TASKS:
        raise NotFound(f"no task is called {name!r}; tasks are: {', '.join(TASKS)}")
    return TASKS[name]


def write_dataset(
    task: Task, folder: Path, *, train: int = 192, evaluation: int = 32, test: int = 64, seed: int = 0
) -> Files:
    """Write ``train.jsonl``, ``eval.jsonl`` and ``test.jsonl`` of a task; the same arguments give the same bytes.

    Raises:
        DataError: a package is missing or of another version.
    """
    parts = task.splits(seed, {"train": train, "eval": evaluation, "test": test})
    make_private_dir(folder)
    for split in SPLITS:
        lines = [json.dumps({"input": pair.input, "target": f" {pair.target}"}) + "\n" for pair in parts[split]]
        write_bytes(folder / f"{split}.jsonl", "".join(lines).encode())
    return Files(*(folder / f"{split}.jsonl" for split in ("train", "eval", "test")))


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="each task gets a folder of its own in it")
    parser.add_argument("--task", action="append", help="only this one (may be given more than once)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        for task in [get(name) for name in options.task or TASKS]:
            files = write_dataset(task, options.folder / task.slug, seed=options.seed)
            counts = " + ".join(
                str(len(path.read_bytes().splitlines())) for path in (files.train, files.eval, files.test)
            )
            first = json.loads(files.train.read_bytes().splitlines()[0])
            print(f"{task.family:14} {task.name:24} {counts:14} {first['input']} ->{first['target']}")
    except PromptTunerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    for name, version in PINNED.items():
        print(f"words of {name} {version}: {LICENCES[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
