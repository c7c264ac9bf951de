"""Starts and speeds that a tick has measured, folded into the profiles."""

from __future__ import annotations

import math
from typing import Any

from prompttuner.controller.act.transaction import Tx
from prompttuner.db.queries import profiles as profile_rows

__all__ = ["remember"]

SMOOTHING = 0.3
"""Weight of a new measurement in the moving average."""


def remember(tx: Tx) -> None:
    """Fold the starts and speeds measured in this transaction into the profiles."""
    if tx.measured:
        present = {(r.pool, r.model, r.kind): r for r in profile_rows.load_startups(tx.session)}
        rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        for pool, model, kind, seconds in tx.measured:
            old = present.get((pool, model, kind))
            value = seconds if old is None else (1 - SMOOTHING) * old.seconds + SMOOTHING * seconds
            rows[pool, model, kind] = {
                "pool": pool,
                "model": model,
                "kind": kind,
                "seconds": value,
                "samples": 1 if old is None else old.samples + 1,
                "origin": "controller",
            }
        profile_rows.save_startups(tx.session, list(rows.values()), tx.now)
    if tx.speeds:
        known = {(r.pool, r.model, r.members): r for r in profile_rows.load_speeds(tx.session)}
        fresh: dict[tuple[str, str, int], dict[str, Any]] = {}
        for pool, model, members, rate in tx.speeds:
            if not math.isfinite(rate) or rate <= 0:
                continue
            before = known.get((pool, model, members))
            value = rate if before is None else (1 - SMOOTHING) * before.iters_per_s + SMOOTHING * rate
            fresh[pool, model, members] = {
                "pool": pool,
                "model": model,
                "members": members,
                "iters_per_s": value,
                "samples": 1 if before is None else before.samples + 1,
                "origin": "controller",
            }
        profile_rows.save_speeds(tx.session, list(fresh.values()), tx.now)
