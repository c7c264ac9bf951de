"""Figures for Prometheus: a text file after each tick (for cron), and HTTP on the loopback interface for a daemon."""

from __future__ import annotations

import contextlib
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest, start_http_server

from prompttuner.controller.resources import Resources
from prompttuner.controller.tick_report import TickReport
from prompttuner.db.queries import allocations as allocation_rows
from prompttuner.db.queries import jobs as job_rows
from prompttuner.errors import ConfigError
from prompttuner.files import write_bytes
from prompttuner.states import AllocationState, JobState

__all__ = ["Metrics"]

READABLE = 0o644
"""The node exporter that reads the file runs as another user; it holds counts only."""


class Metrics:
    """All gauges of one controller."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._jobs = self._gauge("jobs", "Jobs by state.", ["state"])
        self._allocations = self._gauge("allocations", "Allocations by state.", ["state"])
        self._gpus = self._gauge("gpus_held", "GPUs of allocations that have not ended.")
        self._late = self._gauge("jobs_late", "Active jobs whose deadline has passed.")
        self._tick = self._gauge("tick_seconds", "Duration of the last tick.")
        self._at = self._gauge("last_tick_time_seconds", "Unix time of the last tick.")
        self._paused = self._gauge("submissions_paused", "1 while submissions pause after failures.")

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(f"prompttuner_{name}", text, labels or [], registry=self.registry)

    def serve(self, port: int) -> Any:
        """Answer on http://127.0.0.1:port/metrics; returns the server.

        Raises:
            ConfigError: the port is taken.
        """
        try:
            server, _ = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        except OSError as error:
            raise ConfigError(f"metrics_port {port} cannot be used: {error.strerror}; choose another") from error
        return server

    def update(self, res: Resources, report: TickReport, held_gpus: int, late: int, *, paused: bool) -> None:
        """Take the figures of a tick; write the text file if one is set (a full disk is a warning)."""
        jobs = res.state.query(job_rows.count_by_state)
        allocations = res.state.query(allocation_rows.count_by_state)
        for state in JobState:
            self._jobs.labels(state.value).set(jobs.get(state.value, 0))
        for held in AllocationState:
            self._allocations.labels(held.value).set(allocations.get(held.value, 0))
        self._gpus.set(held_gpus)
        self._late.set(late)
        self._tick.set(report.seconds)
        self._at.set(res.now())
        self._paused.set(int(paused))
        path = res.settings.metrics_file
        if path is not None:
            try:
                write_bytes(path, generate_latest(self.registry), READABLE)
                with contextlib.suppress(OSError):
                    path.chmod(READABLE)  # whatever the umask
            except OSError as error:
                res.warn(f"metrics not written to {path}: {error.strerror}")
