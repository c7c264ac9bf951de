"""The Slurm backend: submit through submitit, observe in batches, cancel in batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prompttuner.config import Settings
from prompttuner.errors import BackendError
from prompttuner.slurm.backend import AllocationRequest, Seen
from prompttuner.slurm.command import ClientError, SlurmClient, chunks
from prompttuner.slurm.observe import Observer
from prompttuner.slurm.script import DEFAULT_WALLTIME_S, Script, agent_script, build_script
from prompttuner.slurm.site.memory import MemoryRule, size_mb
from prompttuner.slurm.submit import submit

__all__ = ["SlurmBackend"]


class SlurmBackend:
    """Allocations as Slurm jobs of this user.

    Args:
        settings: all settings; ``settings.slurm`` says what an allocation asks for.
        entry: what runs in an allocation (the agent, unless a test or benchmark says otherwise).
        clock: Unix seconds.
    """

    name = "slurm"

    def __init__(
        self,
        settings: Settings,
        entry: Callable[[str], Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._entry = entry
        self.client = SlurmClient(settings.slurm.call_timeout_s)
        self._observer = Observer(
            self.client, settings.spool_dir / "agents", accounting=settings.slurm.accounting, clock=clock
        )
        self._walltimes: dict[str | None, float] = {}
        self._memory_rules: dict[str | None, MemoryRule] = {}

    def script(self, request: AllocationRequest) -> Script:
        """What ``submit`` would send; shown by ``render agent`` and ``--dry-run``."""
        settings = self._settings
        return build_script(
            request,
            settings.slurm,
            walltime_s=request.walltime_s or self.walltime_s(request.options.get("partition")),
            offline=settings.slurm.offline,
            templates=self.templates,
            mem_mb=self._memory(request),
        )

    def _memory(self, request: AllocationRequest) -> int | None:
        """What to ask for, where the user says nothing and the site gives too little by itself."""
        from prompttuner.slurm.site.site import partition_memory

        if request.mem_mb is None or self._settings.slurm.mem is not None:
            return None
        name = request.options.get("partition") or self._settings.slurm.partition
        if name not in self._memory_rules:
            try:
                self._memory_rules[name] = partition_memory(self.client, name)
            except ClientError:
                return None  # Slurm is away: sbatch will say so
        cpus = self._settings.slurm.cpus_per_agent or 1
        return self._memory_rules[name].to_ask(request.mem_mb, request.gpus, cpus)

    def memory_given(self, request: AllocationRequest) -> int | None:
        """MB that an allocation is held to: what the user set, or what is asked for; None where neither is."""
        own = self._settings.slurm.mem
        return self._memory(request) if own is None else size_mb(own)

    @property
    def templates(self) -> Path:
        """The user's own templates."""
        return self._settings.slurm.templates or self._settings.home / "templates"

    def submit(self, request: AllocationRequest) -> str:
        """Ask for one allocation; returns Slurm's job id. Raises SubmitRefused or SubmitUnknown."""
        return submit(self.script(request), request, self._settings.slurm.call_timeout_s, self._entry)

    def test_only(self, request: AllocationRequest) -> str:
        """Ask Slurm whether it would take this very script; returns what it says. Nothing is started.

        Raises:
            ClientError: it would refuse, in its own words.
        """
        script = self.script(request)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "agent.sh"
            path.write_text(agent_script(script))
            return self.client.run("sbatch", "--test-only", *script.command_line, str(path))

    def cancel(self, native_ids: Sequence[str]) -> None:
        """End allocations; ids that are gone are no error.

        Their processes may live on until Slurm has killed them: ``observe`` says COMPLETING as long as they do.
        """
        failed = ""
        for piece in chunks(sorted(set(native_ids))):
            try:
                self.client.run("scancel", "--quiet", *piece)
            except ClientError as error:
                if "invalid job id" not in str(error).lower():
                    failed = str(error)
        if failed:
            raise BackendError(f"scancel: {failed}")

    def observe(self, known: Sequence[tuple[str, str | None]]) -> dict[str, Seen]:
        """What Slurm says now, by uuid; never raises for a Slurm that is away."""
        return self._observer.observe(known)

    def walltime_s(self, partition: str | None = None) -> float:
        """Walltime of an allocation: the user's setting, the partition's limit, its default, or 4 hours."""
        from prompttuner.slurm.site.site import partition_walltime

        if self._settings.slurm.walltime_s is not None:
            return self._settings.slurm.walltime_s
        name = partition or self._settings.slurm.partition
        if name not in self._walltimes:
            try:
                self._walltimes[name] = partition_walltime(self.client, name) or DEFAULT_WALLTIME_S
            except ClientError:
                # Not asked again by this controller, which must not wait for a Slurm that is away at each tick.
                self._walltimes[name] = DEFAULT_WALLTIME_S
        return self._walltimes[name]
