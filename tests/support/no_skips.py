"""In CI nothing may be skipped: a test that skips there (except for want of a GPU) is a failed test."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]


def strict() -> bool:
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What the test said when it skipped itself."""
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = reason_of(report)
    report.outcome = "failed"
    report.longrepr = f"skipped, but CI skips no test: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and strict() and item.get_closest_marker("gpu") is None:
        refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and strict():
        refuse(report)
    return report
