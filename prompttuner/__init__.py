"""Deadline-aware, elastic LLM prompt tuning on Slurm clusters."""

__version__ = "0.1.0"
