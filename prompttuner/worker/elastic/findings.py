"""What ``doctor`` says about the members' communication: backend, interface, and why (no torch is imported)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from prompttuner.errors import ConfigError
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.worker.elastic.network import address_of, default_address, interface_of, interfaces

__all__ = ["ElasticFinding", "elastic_findings"]


@dataclass(frozen=True, slots=True)
class ElasticFinding:
    """One line of ``doctor``: ``level`` is ``ok``, ``advice`` or ``WRONG``."""

    level: str
    topic: str
    message: str


def elastic_findings(settings: ElasticSettings, *, one_host: bool = False) -> list[ElasticFinding]:
    """What will be used on this host, and what stands in its way. Meant for a node of the kind that tunes.

    ``one_host``: all members run here, so a loopback interface is right.
    """
    return [_interface(settings, one_host), _backend(settings), _way(settings)]


def _interface(settings: ElasticSettings, one_host: bool) -> ElasticFinding:
    try:
        address = address_of(settings.interface) if settings.interface else default_address()
        name = settings.interface or interface_of(address)
    except ConfigError as error:
        return ElasticFinding("WRONG", "interface", str(error))
    chosen = "as set" if settings.interface else "it has this host's address"
    if ipaddress.ip_address(address).is_loopback and not one_host:
        others = sorted(set(interfaces()) - {name})
        hint = f"; set elastic.interface to one of {', '.join(others)}" if others else ""
        text = f"members talk over {name} ({address}): they can only be on this one host{hint}"
        return ElasticFinding("advice", "interface", text)
    return ElasticFinding("ok", "interface", f"members talk over {name} ({address}), {chosen}")


def _backend(settings: ElasticSettings) -> ElasticFinding:
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if settings.backend == "nccl":
        if not gpus or find_spec("torch") is None:
            return ElasticFinding("WRONG", "backend", "nccl is set, but this host has no NVIDIA GPU; use gloo")
        return ElasticFinding(
            "advice", "backend", f"nccl, as set, on {gpus} GPUs; every member must reach every other's GPU"
        )
    why = "a step sends only the prompt's gradient (some 100 KB), and gloo also works between isolated GPUs"
    return ElasticFinding("ok", "backend", f"gloo: {why}")


def _way(settings: ElasticSettings) -> ElasticFinding:
    bound = f"a lost member is noticed within {settings.loss_timeout_s:g} s"
    if settings.way == "in_place":
        return ElasticFinding("ok", "resize", f"in place: those who stay keep process and model; {bound}")
    return ElasticFinding("ok", "resize", f"by restart: torchelastic starts workers anew from a checkpoint; {bound}")
