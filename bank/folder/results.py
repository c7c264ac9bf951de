"""A job that ended well leaves its prompt in the bank, and what became of the prompt it started from. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prompttuner.bank.folder.adapters import read_adapter, read_single_tensor
from prompttuner.bank.folder.entry import BadEntry, Entry
from prompttuner.bank.folder.layout import ID_PATTERN
from prompttuner.bank.folder.shelf import Bank
from prompttuner.bank.folder.tasks import note_task
from prompttuner.files import read_json
from prompttuner.protocol.lookup import LookupReport

__all__ = ["PREFERRED_VERSION", "add_result"]

PREFERRED_VERSION = "final"
"""Which state of a tuned prompt is stored where there are two: what benchmarks/bank.py (``versions``) favours."""


def add_result(
    bank_dir: Path, result_dir: Path, spec: Mapping[str, Any], job: str, *, lookup: LookupReport | None = None
) -> str | None:
    """Enter the prompt of a finished job, and the outcome of the entry that it started from.

    Features are not computed here: an idle agent, or the next lookup, does that. In a private bank it is noted where
    the job's training data lies, for leave-one-out trials in idle time.

    Args:
        bank_dir: the user's own bank; made (private) where there is none.
        result_dir: the promoted result folder (adapter, ``result.json``, perhaps ``early_prompt.safetensors``).
        spec: the resolved job spec.
        job: the job's id.
        lookup: what came of the job's lookup, if it had one.

    Returns:
        The entry's id; None when the job did not reach its target (only the outcome is noted then).

    Raises:
        BadEntry: the result's tensor is refused (not finite, wrong shape, ...).
    """
    result = read_json(result_dir / "result.json")
    if not isinstance(result, dict):
        raise BadEntry(f"{result_dir} holds no result.json")
    model = str(spec["model"])
    shelf = Bank.create(bank_dir).shelf(model)
    reached = result.get("outcome") == "reached"
    lookup = lookup or LookupReport()
    started_from = lookup.chosen or ""
    if ID_PATTERN.fullmatch(started_from):
        shelf.add_outcome(
            {
                "entry": started_from,
                "job": job,
                "reached": reached,
                "ita": result.get("ita"),
                "cap": spec.get("max_iterations"),
                "score": lookup.score,
                "vocab_score": lookup.vocab_score,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
    if not reached:
        return None
    version, prompt = "final", read_adapter(result_dir)[0]
    early = result_dir / "early_prompt.safetensors"
    if PREFERRED_VERSION == "early" and early.exists():
        version, prompt = "early", read_single_tensor(early)
    quality = {key: result.get(key) for key in ("ita", "metric", "loss", "step", "early_step")}
    quality |= {"target": spec.get("target"), "start": (result.get("initial") or {}).get("origin")}
    entry = Entry(
        kind="soft",
        model=str(spec.get("model_name") or model),
        task=str(spec.get("note") or spec.get("name") or Path(str(spec.get("train", ""))).parent.name)[:500],
        source=f"job {job}",
        version=version,
        quality=quality,
    )
    entry_id = shelf.add(entry, prompt, tuned_here=True)
    note_task(shelf, entry_id, spec, job)
    return entry_id
