"""What a tick does last: purges, retention, the index of the banks."""

from __future__ import annotations

from prompttuner.controller.resources import Resources
from prompttuner.controller.upkeep.bank_index import BankIndexer
from prompttuner.controller.upkeep.retention import Retention

__all__ = ["Upkeep"]


class Upkeep:
    """Each part knows by itself when it is due."""

    def __init__(self, resources: Resources) -> None:
        self.retention = Retention(resources)
        self.indexer = BankIndexer(resources, resources.settings.all_bank_dirs)

    def do(self, *, asked: bool, results: int) -> None:
        """Do what is due.

        Args:
            asked: requests came in, so something may be asked to be purged.
            results: jobs that have just left something in the bank.
        """
        self.retention.purge_asked(asked)
        self.retention.clean_up()
        if results:
            self.indexer.look_soon()
        self.indexer.follow()
