"""A skipped test is a failure in CI, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"

TESTS = """
import pytest

def test_runs():
    assert True

def test_skips():
    pytest.skip("no such program")

@pytest.mark.gpu
def test_needs_a_gpu():
    pytest.skip("no GPU")

@pytest.mark.xfail(strict=True)
def test_known():
    raise RuntimeError
"""


@pytest.mark.parametrize(("ci", "code", "closing"), [("true", 1, "1 failed"), ("", 0, "2 skipped")])
def test_a_skip_fails_in_ci_only(tmp_path: Path, ci: str, code: int, closing: str) -> None:
    (tmp_path / "conftest.py").write_text("from no_skips import *\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)],
        env={**os.environ, "CI": ci, "PYTHONPATH": str(SUPPORT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout
    assert closing in done.stdout
    assert ("CI skips no test: Skipped: no such program" in done.stdout) == bool(ci)
