"""Growing columns whose rows are packed: a removed row is filled by the last one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Table"]


class Table:
    """Arrays by name, all of one length; ``owners[row]`` is the object that lives in the row (it has a ``row``)."""

    def __init__(self, kinds: Mapping[str, type], capacity: int = 256) -> None:
        self.n = 0
        self.ids: list[str] = []
        self.owners: list[Any] = []
        self.data: dict[str, NDArray[Any]] = {name: np.zeros(capacity, dtype=kind) for name, kind in kinds.items()}

    def append(self, owner: Any, ident: str, values: Mapping[str, float]) -> int:
        """A new last row; returns it."""
        row = self.n
        if row == len(next(iter(self.data.values()))):
            self.data = {name: np.concatenate([old, np.zeros_like(old)]) for name, old in self.data.items()}
        for name, column in self.data.items():
            column[row] = values[name]
        self.ids.append(ident)
        self.owners.append(owner)
        owner.row = row
        self.n += 1
        return row

    def remove(self, row: int) -> Any | None:
        """Take a row out; returns the owner of the row that moved into its place, if any."""
        last = self.n - 1
        moved = None
        if row != last:
            for column in self.data.values():
                column[row] = column[last]
            moved = self.owners[last]
            self.ids[row], self.owners[row] = self.ids[last], moved
            moved.row = row
        self.ids.pop()
        self.owners.pop()
        self.n = last
        return moved

    def publish(self, target: object, names: tuple[str, ...]) -> None:
        """Point the target's columns at the rows that exist."""
        n = self.n
        for name in names:
            setattr(target, name, self.data[name][:n])
