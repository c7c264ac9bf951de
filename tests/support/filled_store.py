"""A store with something in every table, and all that is in a store, for comparisons."""

from __future__ import annotations

from typing import Any

from row_tools import assign, end_leases
from sqlalchemy import select
from sqlalchemy.orm import Session

from prompttuner.db import Change, Store
from prompttuner.db.queries import allocations, bank_index, events, jobs, leases, profiles, requests
from prompttuner.db.tables.models import Base, Job

__all__ = ["everything", "fill"]


def fill(store: Store) -> None:
    """Four jobs (done, running, queued, held), three allocations, leases, events, a request, profiles, bank entries."""
    mine = store.acquire(ttl_s=60.0)
    store.transact(mine, _add)
    store.transact(mine, _work)
    store.transact(mine, _learn)
    store.release(mine)


def _add(session: Session) -> None:
    common = {"pool": "gpt2@a100", "model": "gpt2", "owner": "ada"}
    rows: list[dict[str, Any]] = [
        {"id": "j-done", "spec": {"target": "loss<=1.5", "text": 'ünï "quoted" \u0000'}, **common},
        {"id": "j-run", "spec": {"n": [1, 2.5, None, True]}, "deadline_at": 5000.25, "max_gpus": 4, **common},
        {"id": "j-queued", "spec": {}, "name": "it's", "priority": -3, **common},
        {"id": "j-held", "spec": {}, "state": "held", "best_effort": True, **common},
    ]
    jobs.add(session, rows, 1000.0, "submitted by ada")
    intents = [{"uuid": f"u{number}", "pool": "gpt2@a100", "model": "gpt2"} for number in range(3)]
    allocations.add(session, intents, 1001.0, "two jobs wait")


def _work(session: Session) -> None:
    states = [Change(name, "starting", "Slurm started it", {"native_id": "17"}) for name in ("u0", "u1", "u2")]
    allocations.change(session, states, 1010.0)
    busy = [Change("u0", "busy", "leased", {"job_id": "j-done"}), Change("u1", "busy", "leased", {"job_id": "j-run"})]
    allocations.change(session, busy, 1020.0)
    for job, member in (("j-done", "u0"), ("j-run", "u1")):
        jobs.change(session, [Change(job, "running", "has a GPU", {"members": [member], "generation": 1})], 1020.0)
        leases.grant(session, job, 1, [member], at=1020.0, cause="deadline")
    end_leases(session, "j-done", "target reached", 1100.0)
    jobs.change(session, [Change("j-done", "done", "target reached", {"step": 120, "eval_loss": 1.25})], 1100.0)
    allocations.change(session, [Change("u0", "ended", "idle for too long")], 1200.0)
    found = {"history": [[1020.0, 1]], "lookup": {"best": "h1"}, "updated_at": 1200.0}
    assign(session, Job, "j-run", **found)
    events.append(session, [events.NewEvent("slurm.refused", "quota", allocation="u2")], 1201.0)


def _learn(session: Session) -> None:
    kind = {"pool": "gpt2@a100", "model": "gpt2", "samples": 3, "origin": "measured"}
    profiles.save_speeds(session, [{**kind, "members": n, "iters_per_s": 1.5 * n} for n in (1, 2)], 1300.0)
    profiles.save_startups(session, [{**kind, "kind": "warm", "seconds": 0.75}], 1300.0)
    entry = {"bank": "/bank", "shelf": "gpt2", "model": "gpt2", "kind": "soft", "outcomes": [["j-done", True, 120]]}
    bank_index.save(session, [{**entry, "entry": name} for name in ("h1", "h2")], 1300.0)
    requests.record(
        session, "r1", "hold", requested_at=999.0, by="ada", at=1000.0, ok=True, message="held", data={"job": "j-held"}
    )


def everything(store: Store) -> dict[str, list[dict[str, Any]]]:
    """All rows by table, ordered by primary key; without ownership and what belongs to the database itself."""
    found: dict[str, list[dict[str, Any]]] = {}
    with store.read() as session:
        for table in Base.metadata.sorted_tables:
            rows = session.execute(select(table).order_by(*table.primary_key.columns))
            found[table.name] = [dict(row._mapping) for row in rows]
    found.pop("ownership")
    found["meta"] = [row for row in found["meta"] if row["key"] != "schema_made_by"]
    return found
