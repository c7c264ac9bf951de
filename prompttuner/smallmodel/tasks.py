"""Named tasks for the small model: compositions of one position and one letter operation, as JSONL data sets.

A task is called ``<position>+<letter>``, for example ``reverse+upper``. `SEEN` tasks are those the model was trained
on, with an instruction in words before the input. `HELD_OUT` tasks are compositions of known operations whose
combination it never saw: a soft prompt has to be tuned for them. `NEW` tasks use functions for which the model knows
no word.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prompttuner.errors import NotFound
from prompttuner.files import make_private_dir, write_bytes
from prompttuner.smallmodel.operations import LETTER_OPS, LETTERS, POSITION_OPS, Operation

__all__ = ["CONNECTORS", "HELD_OUT", "NEW", "SEEN", "Task", "get", "phrasings", "write_dataset"]

CONNECTORS = ("then", "and", ",")
MIN_LETTERS, MAX_LETTERS = 3, 7

_HELD_OUT = (
    "reverse+upper", "reverse+next2", "sort+upper", "sort_down+next", "rotate_left+previous", "rotate_left+upper",
    "rotate_right+next", "swap_ends+next2", "swap_ends+previous2", "double+previous", "drop_first+next",
    "drop_last+upper", "drop_last+previous2", "every_second+next2",
)  # fmt: skip

_NEW_OPS = {
    "drop_ends": lambda x: x[1:-1],
    "first_only": lambda x: x[:1],
    "mirror": lambda x: x + x[::-1],
    "swap_halves": lambda x: x[len(x) // 2 :] + x[: len(x) // 2],
}


@dataclass(frozen=True)
class Task:
    """One function from a list of letters to a list of letters."""

    name: str
    position: Operation
    letter: Operation

    def target(self, letters: list[str]) -> list[str]:
        """The right answer for ``letters``."""
        return self.letter.apply(self.position.apply(letters))

    def samples(self, seed: int, count: int, split: str = "train") -> Iterator[dict[str, str]]:
        """``count`` samples, a pure function of the arguments; no ``train`` input is in ``eval`` and vice versa.

        Inputs are split by a checksum of their letters, a quarter goes to ``eval``.
        """
        rng = random.Random(f"{self.name}/{seed}/{split}")
        while count > 0:
            letters = rng.choices(LETTERS, k=rng.randint(MIN_LETTERS, MAX_LETTERS))
            if is_eval_input(letters) == (split == "eval"):
                count -= 1
                yield {"input": f"{' '.join(letters)} =", "target": " ".join(self.target(letters))}


def is_eval_input(letters: list[str]) -> bool:
    """Whether an input belongs to the evaluation quarter, which nothing is ever trained on."""
    return sum((index + 1) * LETTERS.index(letter) for index, letter in enumerate(letters)) % 4 == 0


def _task(name: str) -> Task:
    position, _, letter = name.partition("+")
    return Task(name, POSITION_OPS[position], LETTER_OPS[letter])


HELD_OUT: dict[str, Task] = {name: _task(name) for name in _HELD_OUT}
SEEN: dict[str, Task] = {
    name: _task(name) for name in (f"{p}+{q}" for p in POSITION_OPS for q in LETTER_OPS) if name not in HELD_OUT
}
NEW: dict[str, Task] = {
    f"{name}+same": Task(f"{name}+same", Operation(name, apply, ()), LETTER_OPS["same"])
    for name, apply in _NEW_OPS.items()
}


def get(name: str) -> Task:
    """The task called ``name``.

    Raises:
        NotFound: no such task; the message lists the held-out ones.
    """
    for group in (HELD_OUT, SEEN, NEW):
        if name in group:
            return group[name]
    raise NotFound(f"no task is called {name!r}; tasks to tune for are: {', '.join([*HELD_OUT, *NEW])}")


def phrasings(task: Task, connectors: tuple[str, ...] = CONNECTORS) -> list[str]:
    """Every instruction text for ``task`` (empty for `NEW` tasks), as it stands before the input in training."""
    return [
        f"{first} {connector} {second} :"
        for first in task.position.phrasings
        for connector in connectors
        for second in task.letter.phrasings
    ]


def write_dataset(
    task: Task | str, folder: Path, *, train: int = 512, evaluation: int = 128, seed: int = 0
) -> tuple[Path, Path]:
    """Write ``train.jsonl`` and ``eval.jsonl`` of a task into ``folder`` and return their paths.

    Args:
        task: a task or its name.
        train: number of training samples.
        evaluation: number of evaluation samples.
        seed: the same seed gives the same files, byte for byte.
    """
    chosen = get(task) if isinstance(task, str) else task
    make_private_dir(folder)
    paths = []
    for split, count in (("train", train), ("eval", evaluation)):
        lines = "".join(json.dumps(sample) + "\n" for sample in chosen.samples(seed, count, split))
        write_bytes(folder / f"{split}.jsonl", lines.encode())
        paths.append(folder / f"{split}.jsonl")
    return paths[0], paths[1]
