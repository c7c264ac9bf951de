"""A controller on a fake site, with the real store, spool, agent and policy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, scratch_root


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder, Lab(Path(folder)) as made:
        yield made
