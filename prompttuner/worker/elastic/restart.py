"""The other way to resize: torchelastic starts a new worker for each generation, which begins from a checkpoint.

The lease's process is torchelastic's agent and serves the generation's store; its worker is forked from it, so it has
the imports and the model already. In place is the default; this way needs nothing of the worker but that it can end.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import traceback

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

from prompttuner.protocol.jobs import Membership
from prompttuner.worker.elastic.group import PeerLost
from prompttuner.worker.elastic.rendezvous import PREFIX_ENV, Joined, PlanRendezvous
from prompttuner.worker.failure import tell_failure
from prompttuner.worker.member import LeaseEnd, Maker, Member
from prompttuner.worker.membership import read_membership
from prompttuner.worker.signals import LeaveRequested, Signals

__all__ = ["MAX_RESTARTS", "run_under_torchelastic"]

MAX_RESTARTS = 3
"""Crashes of a worker that one lease forgives; planned changes and losses of other members do not count."""
MONITOR_S = 0.02
STOP_S = 5
"""A parked worker ends at once; one that does not is killed."""
ROLE = "prompttuner"


class PlanAgent(LocalElasticAgent):
    """torchelastic's agent without its exit barrier (members leave at different times), passing signals on."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, signals: Signals) -> None:
        super().__init__(spec, logs, start_method="fork", shutdown_timeout=STOP_S)
        self._signals = signals
        self._told: int | None = None

    def _exit_barrier(self) -> None:
        """Nobody waits for those who leave."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._pcontext is not None:
            for pid in self._pcontext.pids().values():
                if self._signals.leave and self._told != pid:
                    self._told = pid
                    os.kill(pid, signal.SIGTERM)
                if self._signals.take_save():
                    os.kill(pid, signal.SIGUSR1)
        result: RunResult = super()._monitor_workers(worker_group)
        return result


def run_under_torchelastic(
    rendezvous: PlanRendezvous, maker: Maker, signals: Signals, plan: Membership, backend: str
) -> LeaseEnd:
    """Run a lease with torchelastic; see :func:`prompttuner.worker.lease.run_lease`."""
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"  # ranks come from the plan: no exchange about them
    rendezvous.tick = signals.check
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # SIGTERM is ours: checkpoint and leave
    folder = tempfile.mkdtemp(prefix="prompttuner-elastic-")
    spec = WorkerSpec(
        role=ROLE,
        local_world_size=1,
        rdzv_handler=rendezvous,
        entrypoint=_worker,
        args=(rendezvous, maker, backend),
        max_restarts=MAX_RESTARTS,
        monitor_interval=MONITOR_S,
    )
    try:
        result = PlanAgent(spec, DefaultLogsSpecs(log_dir=folder), signals).run()
    except LeaveRequested:
        result = None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    newest = read_membership(rendezvous.job_dir) or plan
    if result is None:  # the rendezvous ended without this agent, or it was asked to leave while it waited
        if rendezvous.files is not None:
            rendezvous.files.progress("left")
        if signals.leave:
            return LeaseEnd("terminated", "asked to leave", newest.generation)
        return LeaseEnd("left", rendezvous.reason or newest.stop, newest.generation)
    if result.is_failed():
        codes = ", ".join(str(failure.exitcode) for failure in result.failures.values())
        why = f"the worker died again after {MAX_RESTARTS} restarts (exit codes {codes})"
        return LeaseEnd("crashed", why, newest.generation)
    end: LeaseEnd = next(iter(result.return_values.values()))
    return end


def _worker(outer: PlanRendezvous, maker: Maker, backend: str) -> LeaseEnd:
    """In the forked worker: one generation, then an end, or parking until torchelastic replaces this process."""
    assert outer.joined is not None, "torchelastic starts workers after its rendezvous"
    plan = outer.joined.plan
    rendezvous = PlanRendezvous(outer.job_dir, outer.agent, outer.address, outer.settings, outer.limit)
    signals = Signals()
    with signals.installed():
        try:
            store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False)
            joined = Joined(plan, int(os.environ["RANK"]), PrefixStore(os.environ[PREFIX_ENV] + "/worker", store))
            rendezvous.joined = joined
            rendezvous.enter(plan)
            member = Member(rendezvous, signals, maker, backend)
            member.keeps_state = False
            following = member.generation(joined)
            if isinstance(following, LeaseEnd):
                return LeaseEnd(following.outcome, following.error, plan.generation)
            lost = None
        except PeerLost as error:
            lost = str(error)
        except Exception as error:
            traceback.print_exc()
            return tell_failure(rendezvous, plan.generation, error)
        finally:
            if rendezvous.files is not None:
                rendezvous.files.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # before it is parked: torchelastic ends it at once then
    rendezvous.park(lost)
    while True:
        signal.pause()
