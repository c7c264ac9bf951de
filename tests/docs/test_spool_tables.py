"""The tables of docs/architecture.md name the fields of the classes that cross a process, all and no others."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from prompttuner.protocol.agents import AgentSettings, AgentStatus, Farewell, Instance, Order
from prompttuner.protocol.jobs import CheckpointPointer, Done, LeaseError, Membership, Parked, Progress, StorePlace
from prompttuner.protocol.lookup import LookupReport
from prompttuner.protocol.wire import Message

TEXT = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
CLASSES: list[type[Message]] = [
    AgentSettings, Order, AgentStatus, Instance, Farewell, Membership, Progress, Done, LeaseError, LookupReport,
    CheckpointPointer, StorePlace, Parked,
]  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.FILE)
def test_the_spool_table_names_each_field(cls: type[Message]) -> None:
    row = re.search(rf"^\| `{re.escape(cls.FILE)}` \| `(\w+)` \| (.*) \|$", TEXT, re.MULTILINE)
    assert row is not None, f"no row for {cls.FILE}"
    assert row[1] == cls.__name__
    assert re.findall(r"`(\w+)`", row[2]) == [f.name for f in fields(cls)]  # type: ignore[arg-type]
