"""What rows remember as JSON, read as the classes that it was: statuses, orders, lookups."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prompttuner.protocol.agents import GivenOrder, KnownStatus
from prompttuner.protocol.files import understood
from prompttuner.protocol.lookup import LookupReport
from prompttuner.protocol.wire import Message

if TYPE_CHECKING:
    from prompttuner.db.tables.models import Allocation, Job

__all__ = ["PlaceRecord", "lookup_of", "order_of", "place_of", "status_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceRecord(Message):
    """What an allocation's row remembers of its pool."""

    place: str = ""
    dtype: str = "auto"
    gpu_type: str | None = None
    setup: tuple[str, ...] = ()
    trust_remote_code: tuple[str, ...] = ()


def place_of(record: object) -> PlaceRecord:
    """The place in a row's column; of no wishes where there is none."""
    return understood(PlaceRecord.read(record or {})) or PlaceRecord()


def status_of(allocation: Allocation) -> KnownStatus | None:
    """The agent's last status; None before its first."""
    return understood(KnownStatus.read(allocation.status)) if allocation.status else None


def order_of(allocation: Allocation) -> GivenOrder | None:
    """The order last written; None before the first."""
    return understood(GivenOrder.read(allocation.order)) if allocation.order else None


def lookup_of(job: Job) -> LookupReport:
    """What is known of the job's lookup; before its worker has reported, no more than what was granted for it."""
    report = understood(LookupReport.read(job.lookup or {})) or LookupReport()
    return report if report.budget_s is not None else replace(report, budget_s=job.lookup_budget_s)
