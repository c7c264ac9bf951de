"""Model profiles: how fast an LLM tunes on n GPUs and how long its starts take, each with its origin."""

from __future__ import annotations

from prompttuner.profiles.load import (
    builtin,
    load_profile,
    load_profiles,
    parse_profile,
    remarks,
    save_profile,
    stated,
)

__all__ = ["builtin", "load_profile", "load_profiles", "parse_profile", "remarks", "save_profile", "stated"]
