"""The database: tables, migrations and the store. Nothing is opened at import.

``Store`` gives read and write sessions; the modules ``jobs``, ``allocations``, ``leases``, ``events``, ``requests``,
``profiles`` and ``bank_index`` hold the functions that work with a session.
"""

from prompttuner.db.queries.changes import Change
from prompttuner.db.queries.events import NewEvent
from prompttuner.db.store.failures import NoDatabase
from prompttuner.db.store.ownership import OwnerInfo, Ownership
from prompttuner.db.store.store import NetworkFileSystemWarning, Store

__all__ = ["Change", "NetworkFileSystemWarning", "NewEvent", "NoDatabase", "OwnerInfo", "Ownership", "Store"]
