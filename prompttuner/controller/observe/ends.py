"""When allocations ended: the resource manager's word, asked for until it is known.

An agent's farewell, or its silence together with proof, ends an allocation at once; the manager, which charges for it,
tells the exact end a little later. Until then the row holds the best that is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prompttuner.controller.act.transaction import Tx
from prompttuner.db.queries import allocations as allocation_rows
from prompttuner.slurm.backend import EndSource, Seen

if TYPE_CHECKING:
    from prompttuner.controller.resources import Resources
    from prompttuner.db.tables.models import Allocation

__all__ = ["EndTimes"]

BACK_S = 86400.0
"""Ends older than this, still untold, are left as they are: accounting is lost, or there is none."""
ASKED_FOR_S = 900.0
"""One controller asks for an end no longer than this."""
MOST = 200
"""Ends asked for at a time."""


class EndTimes:
    """Ends whose time the resource manager has not told yet, by uuid."""

    def __init__(self) -> None:
        self._untold: dict[str, tuple[str | None, float]] | None = None
        """uuid -> (native id, when it was first asked for); None: not yet read from the database."""

    def to_ask(self, resources: Resources) -> list[tuple[str, str | None]]:
        """(uuid, native id) of those to be asked for together with the living ones."""
        now = resources.now()
        if self._untold is None:
            rows = resources.state.query(lambda session: allocation_rows.ends_untold(session, now - BACK_S, MOST))
            self._untold = {uuid: (native, now) for uuid, native in rows}
        self._untold = {uuid: kept for uuid, kept in self._untold.items() if 0 <= now - kept[1] < ASKED_FOR_S}
        return [(uuid, native) for uuid, (native, _) in self._untold.items()]

    def note(self, allocation: Allocation, now: float) -> None:
        """An allocation has just ended: ask for its end, unless the manager has told it already."""
        if allocation.native_id is None or allocation.end_source == EndSource.MANAGER.value:
            return
        self._untold = self._untold or {}
        if len(self._untold) < MOST:
            self._untold[allocation.uuid] = (allocation.native_id, now)

    def settle(self, tx: Tx, seen: Mapping[str, Seen]) -> list[str]:
        """Write the ends that the manager has told by now; returns whose, to be forgotten once that is committed."""
        told = []
        for uuid in self._untold or {}:
            view = seen.get(uuid)
            if view is not None and view.end_source is EndSource.MANAGER and view.ends_at is not None:
                allocation_rows.settle_end(tx.session, uuid, view.start_at, view.ends_at, EndSource.MANAGER.value)
                told.append(uuid)
        return told

    def forget(self, uuids: Iterable[str]) -> None:
        """Their ends are known."""
        for uuid in uuids:
            (self._untold or {}).pop(uuid, None)
