"""Where this agent runs: host, address for the rendezvous, Slurm's id, GPUs. Knows the environment, nothing else."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping

from prompttuner.worker.elastic import network

__all__ = ["address_of", "gpu_info", "host_name", "native_id"]


def host_name(environ: Mapping[str, str] = os.environ) -> str:
    """The node's name: Slurm's own where there is one (several nodes may share a host name)."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def native_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """The resource manager's id of this allocation, if it tells."""
    return environ.get("SLURM_JOB_ID") or environ.get("SUBMITIT_LOCAL_JOB_ID")


def address_of(interface: str | None) -> str:
    """IPv4 address that other members can reach: of ``interface`` if given, else this host's own.

    Not simply what the host name resolves to: on many systems that is a loopback address.

    Raises:
        ConfigError: the named interface does not exist or has no address.
    """
    return network.address_of(interface) if interface else network.default_address()


def gpu_info() -> dict[str, str | int]:
    """Name and memory (MiB) of the first visible GPU, by nvidia-smi; empty without one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "x") in {"", "-1"} or not shutil.which("nvidia-smi"):
        return {}
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout.splitlines()
        name, memory = answer[0].rsplit(",", 1)
        return {"name": name.strip(), "memory_mib": int(memory), "count": len(answer)}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}
