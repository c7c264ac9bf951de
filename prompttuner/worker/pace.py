"""How quick steps are, by number of members: what the controller learns model profiles from."""

from __future__ import annotations

from dataclasses import replace

from prompttuner.protocol.jobs import Progress

__all__ = ["Pace"]


class Pace:
    """Counts steps and seconds, apart for each number of members."""

    def __init__(self) -> None:
        self._by_members: dict[str, list[float]] = {}
        self._world = 1
        self._last = 0.0
        self._warm = 0

    def begin(self, world: int) -> None:
        """A generation of this size begins; its first steps are not counted (caches, connections)."""
        self._world, self._warm = world, 2

    def step(self, seconds: float) -> None:
        """Count one step."""
        self._last = seconds
        if self._warm > 0:
            self._warm -= 1
        else:
            entry = self._by_members.setdefault(str(self._world), [0.0, 0.0])
            entry[0] += 1
            entry[1] += seconds

    def noted(self, progress: Progress) -> Progress:
        """With ``iters_per_s`` (with the present number of members) and ``throughput``."""
        steps, total = self._by_members.get(str(self._world), (1.0, self._last))
        return replace(
            progress,
            iters_per_s=steps / total if total > 0 else None,
            throughput={members: (n, round(s, 6)) for members, (n, s) in self._by_members.items()},
        )
