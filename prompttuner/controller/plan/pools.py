"""Pools: jobs that can share agents are those with one LLM, GPU type and set-up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

__all__ = ["Pool", "pool_of"]


@dataclass(frozen=True, slots=True)
class Pool:
    """What an allocation must offer for a job. ``key`` is its name in tables and messages."""

    key: str
    place: str
    """Same for pools whose allocations are interchangeable but for the LLM (GPU type and set-up): an agent may switch
    its LLM within a place, never across."""
    model: str
    dtype: str
    gpu_type: str | None
    setup: tuple[str, ...]
    trust_remote_code: tuple[str, ...]

    def place_record(self) -> dict[str, Any]:
        """What an allocation's row remembers, so that its pool is known without any job."""
        return {
            "place": self.place,
            "dtype": self.dtype,
            "gpu_type": self.gpu_type,
            "setup": list(self.setup),
            "trust_remote_code": list(self.trust_remote_code),
        }

    @classmethod
    def from_record(cls, key: str, model: str, record: Mapping[str, Any]) -> Pool:
        """The pool of an allocation's row."""
        return cls(
            key=key,
            place=str(record.get("place", "")),
            model=model,
            dtype=str(record.get("dtype", "auto")),
            gpu_type=record.get("gpu_type"),
            setup=tuple(record.get("setup") or ()),
            trust_remote_code=tuple(record.get("trust_remote_code") or ()),
        )


def pool_of(spec: Mapping[str, Any]) -> Pool:
    """The pool of a resolved spec."""
    model = str(spec["model"])
    dtype = str(spec.get("dtype") or "auto")
    gpu_type = spec.get("gpu_type")
    setup = tuple(str(line) for line in spec.get("setup") or ())
    trust = tuple(sorted(str(name) for name in spec.get("trust_remote_code") or ()))
    place = _short([gpu_type, setup])
    label = PurePath(str(spec.get("model_name") or model)).name or "model"
    return Pool(f"{label}-{_short([model, dtype, trust, place])}", place, model, dtype, gpu_type, setup, trust)


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:6]
