"""Allocations as local processes, through submitit's LocalExecutor: the laptop's stand-in for Slurm."""

from __future__ import annotations

import os
import select
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from prompttuner.errors import BackendError
from prompttuner.protocol.agents import Farewell, Instance
from prompttuner.protocol.files import read_message, understood
from prompttuner.slurm.backend import AllocationRequest, Seen, SubmitRefused, SubmitUnknown
from prompttuner.slurm.ends import staged
from prompttuner.slurm.observe import end_by_agent
from prompttuner.slurm.words import Native

__all__ = ["LocalBackend", "process_start"]

SUBMIT_LIMIT_S = 60.0
DEFAULT_WALLTIME_MIN = 7 * 24 * 60
SIGNAL_DELAY_S = 30


def process_start(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot (tells a re-used id apart); None if gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class LocalBackend:
    """Native ids are ``pid:start`` of submitit's local controller process.

    Each allocation is started in a session of its own, so that Ctrl-C or a closed terminal ends the command that
    submitted it and not the job.
    """

    name = "local"

    def __init__(self, folder: Path, agents: Path) -> None:
        """``folder``: for submitit's scripts and pickles; ``agents``: the spool's folder of agents."""
        self._folder = folder
        self._agents = agents

    def submit(self, request: AllocationRequest) -> str:
        """Start one agent process; returns its native id."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            self._submit_in_child(request, writer)
        os.close(writer)
        try:
            ready, _, _ = select.select([reader], [], [], SUBMIT_LIMIT_S)
            answer = os.read(reader, 4096).decode() if ready else ""
        finally:
            os.close(reader)
            if not ready:
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if answer.startswith("error "):
            raise SubmitRefused(f"the local executor could not start an agent: {answer[6:]}")
        if not answer:
            raise SubmitUnknown("the local executor did not answer")
        pid = int(answer)
        return f"{pid}:{process_start(pid) or 0}"

    def _submit_in_child(self, request: AllocationRequest, writer: int) -> None:
        """In a forked child: leave the terminal, hand over to submitit, report the pid, vanish."""
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.environ["PYTHONSAFEPATH"] = "1"
            os.environ["OMP_NUM_THREADS"] = "1"
            os.umask(0o077)
            from submitit import LocalExecutor

            from prompttuner.slurm.agent import main

            executor = LocalExecutor(folder=str(self._folder / "%j"), python=_quoted_python())
            executor.update_parameters(
                timeout_min=(request.walltime_s or DEFAULT_WALLTIME_MIN * 60) / 60,
                signal_delay_s=SIGNAL_DELAY_S,
                gpus_per_node=0,
                stderr_to_stdout=True,
                setup=_setup(request),
                name=request.name,
            )
            job = executor.submit(main, str(request.folder / "settings.json"))
            os.write(writer, str(job.job_id).encode())
        except BaseException as error:
            os.write(writer, f"error {type(error).__name__}: {error}".encode()[:4000])
        os._exit(0)

    def cancel(self, native_ids: Sequence[str]) -> None:
        """SIGTERM through submitit's process; gone ones are no error."""
        for native in native_ids:
            pid, _, start = native.partition(":")
            if process_start(int(pid)) == int(start or 0):
                try:
                    os.kill(int(pid), signal.SIGTERM)
                except ProcessLookupError:
                    continue
                except OSError as error:
                    raise BackendError(f"cannot end process {pid}: {error}") from error

    def observe(self, known: Sequence[tuple[str, str | None]]) -> dict[str, Seen]:
        """A live process is RUNNING; a gone one ENDED, with the agent's own exit file as its reason."""
        return {uuid: self._observe_one(uuid, native) for uuid, native in known}

    def _observe_one(self, uuid: str, native: str | None) -> Seen:
        claim = understood(read_message(Instance, self._agents / uuid / Instance.FILE))
        agent_pid = claim.pid if claim is not None and claim.pid else None
        if native is not None:
            pid, _, start = native.partition(":")
            if process_start(int(pid)) == int(start or 0):
                return Seen(Native.RUNNING, native, "RUNNING", node="localhost")
        if agent_pid is not None and _is_agent(agent_pid):
            return Seen(Native.RUNNING, native, "RUNNING", node="localhost")
        if native is None and claim is None:
            return Seen(Native.UNKNOWN)
        farewell = understood(read_message(Farewell, self._agents / uuid / Farewell.FILE))
        reason = "gone without a word" if farewell is None else farewell.reason
        ended_at, source = end_by_agent(self._agents / uuid, farewell)
        return Seen(Native.ENDED, native, "EXITED", reason, ends_at=ended_at, end_source=source)


def _is_agent(pid: int) -> bool:
    """Whether a process still runs submitit's job entry (its id may have been taken over by something else)."""
    if process_start(pid) is None:
        return False
    try:
        return b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _setup(request: AllocationRequest) -> list[str]:
    """The job's own lines, of which submitit makes one shell command; what they say goes to the agent's log."""
    if not request.setup:
        return []
    log = shlex.quote(str(request.folder / "log.txt"))
    return [f"exec >>{log} 2>&1", *staged(request.folder, [], request.setup)]


def _quoted_python() -> str:
    return shlex.quote(sys.executable)
