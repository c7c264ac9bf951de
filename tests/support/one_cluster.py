"""With several test processes, all tests that need Slurm go to the same one: a host bears one cluster at a time well.

They wait for Slurm's own pace most of the time, so the others are done beside them.
"""

from __future__ import annotations

import pytest

__all__ = ["pytest_collection_modifyitems"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slurm") is not None:
            item.add_marker(pytest.mark.xdist_group("slurm"))
