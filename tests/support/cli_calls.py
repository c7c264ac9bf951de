"""Calling the command line in this process, and a resource manager that only takes notes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prompttuner.slurm.backend import AllocationRequest, Seen
from prompttuner.slurm.words import Native

__all__ = ["Cli", "QuietBackend", "Result"]


@dataclass
class QuietBackend:
    """Takes every allocation and leaves it pending: nothing ever runs."""

    name: str = "quiet"
    asked: list[AllocationRequest] = field(default_factory=list)

    def submit(self, request: AllocationRequest) -> str:
        self.asked.append(request)
        return str(len(self.asked))

    def cancel(self, native_ids: Sequence[str]) -> None:
        pass

    def observe(self, known: Sequence[tuple[str, str | None]]) -> dict[str, Seen]:
        return {uuid: Seen(Native.PENDING, native_id) for uuid, native_id in known}


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Result]
