"""Policies: pure functions from a snapshot to a plan. ``get`` finds one by name."""

from __future__ import annotations

from prompttuner.policy.registry import POLICIES, get

__all__ = ["POLICIES", "get"]
