"""Shared pieces of the bank's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from prompttuner.bank import Bank, Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Bank.create(tmp_path / "bank").shelf("org/tiny")
