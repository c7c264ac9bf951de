"""Where this agent runs: host, address for the rendezvous, Slurm's id, GPUs. Knows the environment, nothing else."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Mapping
from typing import Any

__all__ = ["address_of", "gpu_info", "host_name", "native_id"]

SIOCGIFADDR = 0x8915


def host_name(environ: Mapping[str, str] = os.environ) -> str:
    """The node's name: Slurm's own where there is one (several nodes may share a host name)."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def native_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """The resource manager's id of this allocation, if it tells."""
    return environ.get("SLURM_JOB_ID") or environ.get("SUBMITIT_LOCAL_JOB_ID")


def address_of(interface: str | None) -> str:
    """IPv4 address that other members can reach: of ``interface`` if given, else the one the host name resolves to.

    Raises:
        OSError: the named interface does not exist or has no address.
    """
    if interface:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            packed = struct.pack("256s", interface.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, packed)[20:24])
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def gpu_info() -> dict[str, Any]:
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
