"""Fixtures for all tests."""

from slurm_fixtures import bare_slurm, slurm, slurm_session

__all__ = ["bare_slurm", "slurm", "slurm_session"]
