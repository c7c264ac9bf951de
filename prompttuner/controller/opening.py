"""Put a controller together: the backend and policy that the settings name, the spool, the state that it owns."""

from __future__ import annotations

from prompttuner import policy as policies
from prompttuner.config import Settings
from prompttuner.controller.resources import Clock, Resources, State, Warnings
from prompttuner.controller.tick import Controller
from prompttuner.db import Ownership, Store
from prompttuner.slurm.backend import Backend
from prompttuner.slurm.spool import Spool

__all__ = ["make_backend", "open_controller"]


def make_backend(settings: Settings, spool: Spool) -> Backend:
    """The backend that the settings name."""
    if settings.backend == "local":
        from prompttuner.slurm.local import LocalBackend

        return LocalBackend(settings.home / "submitit", spool.agents)
    from prompttuner.slurm.slurm_backend import SlurmBackend

    return SlurmBackend(settings)


def open_controller(settings: Settings, store: Store, ownership: Ownership) -> Controller:
    """All parts of a controller that owns the state."""
    spool = Spool(settings.spool_dir).ensure()
    resources = Resources(settings, spool, State(store, ownership), Clock(), Warnings())
    metrics = None
    if settings.metrics_file is not None or settings.metrics_port is not None:
        from prompttuner.controller.upkeep.metrics import Metrics

        metrics = Metrics()
    return Controller(resources, make_backend(settings, spool), policies.get(settings.policy), metrics=metrics)
