"""Pools: jobs that can share agents are those with one LLM, type of weights, trusted code, GPU type and set-up."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from prompttuner.db.tables.recorded import PlaceRecord
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.spec.models import trusts_own_code

__all__ = ["Pool", "pool_of"]


@dataclass(frozen=True, slots=True)
class Pool:
    """What an allocation must offer for a job. ``key`` is its name in tables and messages."""

    key: str
    place: str
    """Same for pools whose allocations are interchangeable but for the LLM (GPU type, set-up, type of weights, trusted
    code): an agent may switch its LLM within a place, never across."""
    model: str
    dtype: str
    gpu_type: str | None
    setup: tuple[str, ...]
    trust_remote_code: tuple[str, ...]
    """The LLM itself where its own Python code may run, else nothing: whatever else a job trusts is not loaded here."""

    def place_record(self) -> PlaceRecord:
        """What an allocation's row remembers, so that its pool is known without any job."""
        return PlaceRecord(
            place=self.place,
            dtype=self.dtype,
            gpu_type=self.gpu_type,
            setup=self.setup,
            trust_remote_code=self.trust_remote_code,
        )

    @classmethod
    def from_record(cls, key: str, model: str, record: PlaceRecord) -> Pool:
        """The pool of an allocation's row; its place is worked out anew, since rows of former releases have another."""
        dtype, gpu_type, setup = record.dtype, record.gpu_type, record.setup
        trust = (model,) if record.trust_remote_code else ()
        return cls(key, _place(gpu_type, setup, dtype, trust), model, dtype, gpu_type, setup, trust)


def pool_of(spec: ResolvedSpec) -> Pool:
    """The pool of a resolved spec.

    The key is that of former releases, so that what was learned about a pool and the allocations that run stay with it.
    """
    model, dtype, gpu_type, setup = spec.model, spec.dtype, spec.gpu_type, spec.setup
    names = tuple(sorted(spec.trust_remote_code))
    trust = (model,) if trusts_own_code(spec) else ()
    label = PurePath(spec.model_name or model).name or "model"
    key = f"{label}-{_short([model, dtype, names, _short([gpu_type, setup])])}"
    return Pool(key, _place(gpu_type, setup, dtype, trust), model, dtype, gpu_type, setup, trust)


def _place(gpu_type: str | None, setup: tuple[str, ...], dtype: str, trust: tuple[str, ...]) -> str:
    return _short([gpu_type, setup] if dtype == "auto" and not trust else [gpu_type, setup, dtype, trust])


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:6]
