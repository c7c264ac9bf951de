"""A small language model on which prompt tuning is real: shipped as package data, with its task generator."""

from __future__ import annotations

from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """The folder of the shipped model; plain ``AutoModelForCausalLM`` and ``AutoTokenizer`` load it."""
    return Path(__file__).resolve().parent / "model"
