"""How much memory an agent needs, what a site gives where nothing is said, and whether that was too little."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "OUT_OF_MEMORY",
    "UNKNOWN_MODEL_MB",
    "MemoryRule",
    "died_of_memory",
    "needed_mb",
    "parse_rule",
    "size_mb",
    "weights_bytes",
]

BASE_MB = 2048
"""Interpreter, torch, transformers, and room for a batch: an idle agent with a tiny LLM takes about a third of it."""
UNKNOWN_MODEL_MB = 16 * 1024
"""For an agent whose LLM is not known yet: enough for weights of 7 GB."""
ON_DISK = {".safetensors": 1.0, ".bin": 1.0, ".gguf": 8.0}
"""Bytes in memory for one on disk: a quantised file is unpacked."""
OUT_OF_MEMORY = "out of memory"
"""How the reason of such an end begins."""
LOG_TAIL = 8192
_TOO_LITTLE = re.compile(
    r"exceeded (job|step)? ?memory limit|oom[-_ ]kill|out of memory|memory limit \(.*being killed", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class MemoryRule:
    """What a partition gives and allows, in MB; None where nothing is said."""

    per_cpu: int | None = None
    per_node: int | None = None
    per_gpu: int | None = None
    most_per_cpu: int | None = None
    most_per_node: int | None = None
    enforced: bool = False
    """Slurm hands memory out: a job that takes more than it was given is killed."""

    def default_mb(self, gpus: int, cpus: int) -> int | None:
        """What an allocation gets that asks for none; None: all of a node, or nobody counts."""
        if self.per_node is not None:
            return self.per_node
        if self.per_gpu is not None:
            return self.per_gpu * max(gpus, 1)
        return None if self.per_cpu is None else self.per_cpu * max(cpus, 1)

    def most_mb(self) -> int | None:
        """More than this cannot be asked for."""
        return self.most_per_node

    def to_ask(self, need_mb: int, gpus: int, cpus: int) -> int | None:
        """What to ask for so that an agent has what it needs; None: the site gives it anyway."""
        default = self.default_mb(gpus, cpus)
        if (default is None and not self.enforced) or (default is not None and default >= need_mb):
            return None
        most = self.most_mb()
        return need_mb if most is None else min(need_mb, most)


def parse_rule(record: Mapping[str, str], config: Mapping[str, str]) -> MemoryRule:
    """From ``scontrol show partition`` (one record) and ``scontrol show config``; the partition wins."""

    def mb(key: str) -> int | None:
        for source in (record, config):
            match = re.match(r"(\d+)", source.get(key, ""))
            if match:
                return int(match.group(1)) or None
        return None

    per_gpu = re.search(r"DefMemPerGPU=(\d+)", record.get("JobDefaults", "") or config.get("JobDefaults", ""))
    enforced = (
        "MEMORY" in config.get("SelectTypeParameters", "").upper()
        or config.get("ConstrainRAMSpace", "").lower() == "yes"
        or "OverMemoryKill" in config.get("JobAcctGatherParams", "")
    )
    return MemoryRule(
        mb("DefMemPerCPU"),
        mb("DefMemPerNode"),
        None if per_gpu is None else int(per_gpu.group(1)),
        mb("MaxMemPerCPU"),
        mb("MaxMemPerNode"),
        enforced,
    )


def needed_mb(weights: int | None) -> int:
    """Memory of an agent in MB, in whole GB, for an LLM with so many bytes of weights (None: not known).

    Twice the weights: while they are loaded, file and tensors are there at once.
    """
    if weights is None:
        return UNKNOWN_MODEL_MB
    return math.ceil((BASE_MB + 2 * weights / 2**20) / 1024) * 1024


def size_mb(text: str) -> int | None:
    """MB of sbatch's ``32G``, ``4000``, ``4000M``; None if it is none."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text.strip().upper())
    if match is None:
        return None
    return int(int(match.group(1)) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024 * 1024}[match.group(2)])


def weights_bytes(model: str, environ: Mapping[str, str] = os.environ) -> int | None:
    """Bytes that an LLM's weights take in memory, from its folder or the hub's cache; None where they are not found."""
    folder = Path(model)
    if not folder.is_dir():
        home = Path(environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
        cache = Path(environ.get("HF_HUB_CACHE") or home / "hub")
        found = sorted((cache / f"models--{model.replace('/', '--')}" / "snapshots").glob("*"))
        if not found:
            return None
        folder = found[-1]
    sizes: dict[str, float] = {}
    try:
        for path in folder.iterdir():
            factor = ON_DISK.get(path.suffix)
            if factor is not None and not path.name.startswith(("optimizer", "training_args", "adapter_")):
                sizes[path.suffix] = sizes.get(path.suffix, 0.0) + path.stat().st_size * factor
    except OSError:
        return None
    return int(max(sizes.values())) if sizes else None  # formats beside each other hold the same weights


def died_of_memory(log: Path) -> bool:
    """Whether an agent's log ends with Slurm's, or the kernel's, word that memory was exceeded."""
    try:
        with log.open("rb") as handle:
            handle.seek(max(0, log.stat().st_size - LOG_TAIL))
            tail = handle.read().decode(errors="replace")
    except OSError:
        return False
    return _TOO_LITTLE.search(tail) is not None
