"""Pools that pause after failed starts and nodes that are kept away from, as commands show them."""

from __future__ import annotations

from typing import Any

from prompttuner.spec.when import format_duration
from prompttuner.words import Counted

__all__ = ["trial_lines", "trial_views"]


def trial_views(now: float) -> dict[str, list[dict[str, Any]]]:
    """``on_trial``: pools (an empty name stands for every pool); ``excluded``: nodes."""
    from prompttuner.cli.state.reading import open_store
    from prompttuner.db.queries import trials

    store = open_store()
    if store is None:
        return {"on_trial": [], "excluded": []}
    with store, store.read() as session:
        pools = [
            {
                "pool": one.pool,
                "failures": one.failures,
                "paused_for_s": max(0.0, one.paused_until - now),
                "fault": one.cause,
                "reason": one.reason,
                "allocation": one.allocation,
                "nodes": one.nodes,
            }
            for one in trials.load(session).values()
        ]
        nodes = [
            {"node": one.node, "for_s": one.excluded_until - now, "faults": one.faults, "reason": one.reason}
            for one in trials.excluded(session, now)
        ]
    return {"on_trial": pools, "excluded": nodes}


def trial_lines(views: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One line each, with the reason and what to do."""
    lines = []
    for one in views["on_trial"]:
        name = f"pool {one['pool']}" if one["pool"] else "every pool"
        left = one["paused_for_s"]
        again = f"tried again in {format_duration(left)}" if left > 0 else "being tried again"
        log = f" (`prompttuner logs {one['allocation'][:8]}`)" if one["allocation"] else ""
        lines.append(
            f"{name}: {Counted(one['failures'], 'start')} failed in a row, the {one['fault']}'s fault; {again}, or at "
            f"once by `prompttuner pool resume`{log}: {one['reason']}"
        )
    lines += [
        f"node {one['node']}: kept away from for {format_duration(one['for_s'])}: {one['reason']}"
        for one in views["excluded"]
    ]
    return lines
