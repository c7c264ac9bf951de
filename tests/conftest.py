"""Fixtures and hooks for all tests."""

import os
import tempfile
from pathlib import Path

from no_skips import pytest_make_collect_report, pytest_runtest_makereport
from postgres import own_postgres, postgres_server, postgres_url
from property_tests import load_profile
from slurm_fixtures import bare_slurm, bare_slurm_session, slurm, slurm_session

__all__ = [
    "bare_slurm",
    "bare_slurm_session",
    "own_postgres",
    "postgres_server",
    "postgres_url",
    "pytest_make_collect_report",
    "pytest_runtest_makereport",
    "slurm",
    "slurm_session",
]

load_profile()
# What a submit checks of model and data costs seconds: tests with the same data share the answers.
os.environ.setdefault("PROMPTTUNER_CHECKS_DIR", str(Path(tempfile.gettempdir(), f"prompttuner-checks-{os.getuid()}")))
