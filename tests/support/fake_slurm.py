"""A fake Slurm in virtual time. It answers squeue, sacct and scontrol in Slurm's own words, read by the real Observer.

What it does is held to the real one by tests/slurm/test_contract.py, which runs the same scenarios on both.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prompttuner.errors import BackendError
from prompttuner.slurm.backend import AllocationRequest, Seen, SubmitRefused, SubmitUnknown
from prompttuner.slurm.command import ClientError, ClientTimeout
from prompttuner.slurm.observe import Observer
from prompttuner.slurm.words import Native

__all__ = ["FakeAllocation", "FakeSlurm", "Program"]

PARTITIONS = frozenset({"gpu", "spare", "short"})
KEPT_S = 300.0
"""MinJobAge: so long squeue knows an ended job."""
KILL_WAIT_S = 30.0
"""From SIGTERM to SIGKILL."""
FOREVER_S = 7 * 86400.0


class Program(Protocol):
    """What runs in an allocation."""

    def step(self, seconds: float) -> bool:
        """Work for a while; True when it has ended by itself."""
        ...

    def sigterm(self) -> None: ...


@dataclass
class FakeAllocation:
    """One Slurm job."""

    native_id: str
    request: AllocationRequest
    state: Native = Native.PENDING
    word: str = "PENDING"
    """While COMPLETING: the word of its end."""
    program: Program | None = None
    held: bool = False
    silent: bool = False
    """Its node is lost: what ran there is gone, Slurm has not noticed yet."""
    started_at: float | None = None
    ends_at: float | None = None
    """When its walltime is over; once it has ended, when that was."""
    kill_at: float | None = None

    @property
    def zygote(self) -> Any:
        """The fake zygote of an agent, if one runs here."""
        return getattr(self.program, "zygote", None)

    @property
    def node(self) -> str:
        return f"n{1 + int(self.native_id) % 4}"

    @property
    def shown(self) -> str:
        """The word that squeue prints."""
        return "COMPLETING" if self.state == Native.COMPLETING else self.word


@dataclass
class FakeSlurm:
    """Implements ``Backend``. ``step(seconds)`` lets everything on the site happen."""

    agents: Path
    """``spool/agents``, where the Observer finds what agents say of themselves."""
    start_program: Callable[[FakeAllocation], Program | None]
    """None: the program leaves at once."""
    gpus: int = 4
    name: str = "fake"
    time: float = 1_000_000.0
    allocations: dict[str, FakeAllocation] = field(default_factory=dict)
    """By native id."""
    accounting: bool = True
    refuse: int = 0
    """So many of the next submissions are refused."""
    lose_answers: int = 0
    """So many of the next submissions are accepted, but the answer is lost."""
    lose_submissions: int = 0
    """So many of the next submissions fail with an unknown outcome, and nothing was started."""
    limit_gpus: int | None = None
    """A QOS lets this user hold so many GPUs at a time."""
    never: str = ""
    """Slurm's reason why what waits can never start."""
    away: bool = False
    """The controller (slurmctld) does not answer."""
    squeue_says: str = "the truth"
    """Or ``nothing``, or ``nonsense``: torn and foreign lines. The command succeeds all the same."""
    accounting_away: bool = False
    """The accounting database does not answer."""
    kept_s: float = KEPT_S
    submitted: list[str] = field(default_factory=list)
    """Every uuid that was ever accepted."""

    def __post_init__(self) -> None:
        self._ids = itertools.count(101)
        self._observer = Observer(self, self.agents, clock=lambda: self.time)  # type: ignore[arg-type]

    # -- Backend ----------------------------------------------------------------------------------------------

    def submit(self, request: AllocationRequest) -> str:
        if self.away:
            raise SubmitUnknown("sbatch: time-out")
        if request.options.get("partition", "gpu") not in PARTITIONS:
            raise SubmitRefused(f"invalid partition specified: {request.options['partition']}")
        if self.refuse:
            self.refuse -= 1
            raise SubmitRefused("sbatch: QOSMaxSubmitJobPerUserLimit")
        if self.lose_submissions:
            self.lose_submissions -= 1
            raise SubmitUnknown("sbatch: socket timed out")
        native = str(next(self._ids))
        self.allocations[native] = FakeAllocation(native, request)
        self.submitted.append(request.uuid)
        if self.lose_answers:
            self.lose_answers -= 1
            raise SubmitUnknown("sbatch: socket timed out on send/recv")
        return native

    def cancel(self, native_ids: Sequence[str]) -> None:
        if self.away:
            raise BackendError("scancel: time-out")
        for native in native_ids:
            allocation = self.allocations.get(native)
            if allocation is None or allocation.state in {Native.COMPLETING, Native.ENDED}:
                continue
            if allocation.state == Native.PENDING:
                self._end(allocation, "CANCELLED")
            else:
                self._stop(allocation, "CANCELLED")

    def observe(self, known: Sequence[tuple[str, str | None]]) -> dict[str, Seen]:
        return self._observer.observe(known)

    # -- its commands, as the Observer calls them ---------------------------------------------------------------

    def run(self, *command: str) -> str:
        """Output of squeue, sacct or scontrol."""
        if command[0] == "sacct":
            return self._sacct(command)
        if self.away:
            raise ClientTimeout(f"{command[0]} did not answer within 30 s")
        if command[0] == "scontrol":
            return self._scontrol(command[-1])
        truth = self._squeue()
        if self.squeue_says == "nonsense":
            torn = [line[: len(line) * (3 + i % 3) // 6] for i, line in enumerate(truth.splitlines())]
            return "\n".join(["slurm_load_jobs: warning", *torn, "\0|COMPLETED|", "101|COMPLETED|None"])
        return "" if self.squeue_says == "nothing" else truth

    def _in_queue(self) -> list[FakeAllocation]:
        """Ended ones are forgotten after a while."""
        return [
            a
            for a in self.allocations.values()
            if a.state != Native.ENDED or a.ends_at is None or self.time - a.ends_at <= self.kept_s
        ]

    def _squeue(self) -> str:
        rows = []
        for a in self._in_queue():
            reason = "None" if a.state != Native.PENDING else self._reason(a)
            node = a.node if a.started_at is not None else ""
            times = f"{_stamp(a.started_at)}|{_stamp(a.ends_at)}"
            rows.append(f"{a.native_id}|{a.shown}|{reason}|{node}|{times}|{a.request.name}\n")
        return "".join(rows)

    def _reason(self, allocation: FakeAllocation) -> str:
        if allocation.held:
            return "JobHeldUser"
        return self.never or ("Resources" if self._may_hold(allocation) else "QOSMaxGRESPerUser")

    def _may_hold(self, allocation: FakeAllocation) -> bool:
        return self.limit_gpus is None or self.busy_gpus + allocation.request.gpus <= self.limit_gpus

    def _sacct(self, command: Sequence[str]) -> str:
        if not self.accounting:
            raise ClientError("Slurm accounting storage is disabled")
        if self.accounting_away:
            raise ClientError(
                "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection"
            )
        option, _, items = command[-1].partition("=")
        wanted = set(items.split(","))
        rows = []
        for a in self.allocations.values():
            if (a.native_id if option == "--jobs" else a.request.name) in wanted:
                word = "CANCELLED by 1000" if a.word == "CANCELLED" else a.word
                node = a.node if a.started_at is not None else "None assigned"
                times = f"{_stamp(a.started_at)}|{_stamp(a.ends_at)}"
                rows.append(f"{a.native_id}|{word}|{node}|{times}|{a.request.name}\n")
        return "".join(rows)

    def _scontrol(self, native: str) -> str:
        for a in self._in_queue():
            if a.native_id == native:
                node = a.node if a.started_at is not None else ""
                return (
                    f"JobId={native} JobName={a.request.name} JobState={a.shown} Reason=None NodeList={node} "
                    f"StartTime={_stamp(a.started_at)} EndTime={_stamp(a.ends_at)}\n"
                )
        raise ClientError("slurm_load_jobs error: Invalid job id specified")

    # -- what happens on the site --------------------------------------------------------------------------------

    def step(self, seconds: float = 1.0) -> None:
        """Let virtual time pass: start queued allocations while GPUs are free, let programs work, end what is due."""
        self.time += seconds
        for allocation in list(self.allocations.values()):
            fits = self.busy_gpus + allocation.request.gpus <= self.gpus
            fits = fits and self._may_hold(allocation) and not self.never
            if allocation.state == Native.PENDING and not allocation.held and fits:
                self._start(allocation)
            if allocation.state not in {Native.RUNNING, Native.COMPLETING} or allocation.silent:
                continue
            self._work(allocation, seconds)

    def _work(self, allocation: FakeAllocation, seconds: float) -> None:
        assert allocation.program is not None
        ended = allocation.program.step(seconds)
        status = allocation.request.folder / "status.json"
        if status.exists():  # the Observer compares its age with our clock
            os.utime(status, (self.time, self.time))
        if ended:
            self._end(allocation, "COMPLETED" if allocation.state == Native.RUNNING else allocation.word)
        elif allocation.kill_at is not None and self.time >= allocation.kill_at:
            self._end(allocation, allocation.word)
        elif allocation.state == Native.RUNNING and allocation.ends_at is not None and self.time >= allocation.ends_at:
            self._stop(allocation, "TIMEOUT")

    @property
    def busy_gpus(self) -> int:
        holding = {Native.RUNNING, Native.COMPLETING}
        return sum(a.request.gpus for a in self.allocations.values() if a.state in holding)

    def _start(self, allocation: FakeAllocation) -> None:
        allocation.state, allocation.word, allocation.started_at = Native.RUNNING, "RUNNING", self.time
        allocation.ends_at = self.time + (allocation.request.walltime_s or FOREVER_S)
        allocation.program = self.start_program(allocation)
        if allocation.program is None:
            self._end(allocation, "COMPLETED")

    def _stop(self, allocation: FakeAllocation, word: str) -> None:
        """Its end is decided: SIGTERM now, SIGKILL later."""
        allocation.state, allocation.word = Native.COMPLETING, word
        allocation.kill_at = self.time + KILL_WAIT_S
        if allocation.program is not None and not allocation.silent:
            allocation.program.sigterm()

    def _end(self, allocation: FakeAllocation, word: str) -> None:
        allocation.state, allocation.word, allocation.ends_at = Native.ENDED, word, self.time
        allocation.program = None

    # -- users and faults -----------------------------------------------------------------------------------------

    def running(self) -> list[FakeAllocation]:
        return [a for a in self.allocations.values() if a.state == Native.RUNNING]

    def kill(self, allocation: FakeAllocation, word: str = "FAILED") -> None:
        """SIGKILL of the whole allocation: no farewell."""
        self._end(allocation, word)

    def preempt(self, allocation: FakeAllocation, grace: bool = False) -> None:
        """With ``grace`` it is told before, and may write its checkpoint."""
        if grace:
            self._stop(allocation, "PREEMPTED")
        else:
            self._end(allocation, "PREEMPTED")

    def lose_node(self, allocation: FakeAllocation) -> Callable[[], None]:
        """The node vanishes; call the result when Slurm notices."""
        allocation.silent = True

        def notice() -> None:
            if allocation.state != Native.ENDED:
                self._end(allocation, "NODE_FAIL" if allocation.state == Native.RUNNING else allocation.word)

        return notice


def _stamp(at: float | None) -> str:
    return "N/A" if at is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
