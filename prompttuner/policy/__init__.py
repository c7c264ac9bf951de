"""Policies: pure functions from a snapshot to a plan. ``get`` finds one by name, ``variant`` by words with switches."""

from __future__ import annotations

from prompttuner.policy.registry import POLICIES, get, switches_of, variant

__all__ = ["POLICIES", "get", "switches_of", "variant"]
