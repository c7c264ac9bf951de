"""What a worker does for one lease: read spec and plan, begin or resume, tune, leave; and say how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prompttuner.engine.llm.loading import check_usable
from prompttuner.errors import ConfigError, ModelError, SpoolError, StateError
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.files import read_message
from prompttuner.protocol.jobs import Membership
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.spec import check_data
from prompttuner.worker.elastic.rendezvous import PlanRendezvous
from prompttuner.worker.elastic.restart import run_under_torchelastic
from prompttuner.worker.failure import WorkerDied, tell_failure
from prompttuner.worker.member import LeaseEnd, Member
from prompttuner.worker.member_files import MemberFiles
from prompttuner.worker.paced.model import PacedModel
from prompttuner.worker.paced.worker import PacedTask
from prompttuner.worker.plan_watch import plan_for
from prompttuner.worker.resume import MAX_CRASHES, crashes_without_progress, newest_checkpoint
from prompttuner.worker.signals import Signals
from prompttuner.worker.task import Task
from prompttuner.worker.tuner_task import TunerTask

if TYPE_CHECKING:
    from prompttuner.engine.llm.model import LoadedModel

__all__ = ["LeaseEnd", "read_spec", "run_lease"]

PLAN_WAIT_S = 30.0
"""A network file system may show a new plan so late."""


def read_spec(job_dir: Path) -> ResolvedSpec:
    """The frozen spec of a job.

    Raises:
        SpoolError: missing, or it makes no sense.
    """
    spec = read_message(ResolvedSpec, job_dir / ResolvedSpec.FILE)
    if not isinstance(spec, ResolvedSpec):
        raise SpoolError(f"{job_dir / ResolvedSpec.FILE} is missing or not readable" if spec is None else spec.why)
    return spec


def run_lease(
    job_dir: Path,
    *,
    agent: str,
    generation: int,
    address: str,
    model: LoadedModel | PacedModel,
    settings: ElasticSettings,
) -> LeaseEnd:
    """Work for a job until it ends or goes on without this agent; never raises.

    SIGTERM and SIGINT: checkpoint at the next step boundary and leave. SIGUSR1, SIGUSR2: checkpoint and go on. All
    that goes wrong is told in error.json and in what is returned. Nothing is written outside
    ``g<generation>/<agent>/``.
    """
    signals = Signals()
    rendezvous = PlanRendezvous(job_dir, agent, address, settings)
    torch.set_num_threads(settings.threads)
    with signals.installed():
        try:
            return _run(rendezvous, generation, model, settings, signals)
        except Exception as error:
            return tell_failure(rendezvous, generation, error)
        finally:
            if rendezvous.files is not None:
                rendezvous.files.close()
            rendezvous.shutdown()


def _run(
    rendezvous: PlanRendezvous,
    generation: int,
    model: LoadedModel | PacedModel,
    settings: ElasticSettings,
    signals: Signals,
) -> LeaseEnd:
    job_dir, agent = rendezvous.job_dir, rendezvous.agent
    plan = plan_for(job_dir, generation, PLAN_WAIT_S)
    if plan is None:
        raise SpoolError(f"no plan of generation {generation} or later came to {job_dir} within {PLAN_WAIT_S:g} s")
    if agent not in plan.members:
        return LeaseEnd("left", f"generation {plan.generation} is without this agent", plan.generation)
    files = rendezvous.enter(plan)
    spec = read_spec(job_dir)
    crashes = crashes_without_progress(job_dir, plan)
    if crashes >= MAX_CRASHES:
        raise WorkerDied(
            f"the worker died {crashes} times in a row without an error and without getting further; most likely "
            f"the node's memory is too small for it (see the agent's log)"
        )
    if spec.paced is None:
        check_data(spec)
    rendezvous.limit = spec.batch_size
    maker = TaskMaker(job_dir, spec, model, settings)
    if settings.way == "restart":
        return run_under_torchelastic(rendezvous, maker, signals, plan, choose_backend(settings, model))
    member = Member(rendezvous, signals, maker, choose_backend(settings, model))
    files.note(model=spec.model)
    return member.run(plan)


class TaskMaker:
    """Makes a lease's task: from a checkpoint, from another member's state, or anew."""

    def __init__(
        self, job_dir: Path, spec: ResolvedSpec, model: LoadedModel | PacedModel, settings: ElasticSettings
    ) -> None:
        if isinstance(model, PacedModel) and spec.paced is None:
            raise ModelError(f"{model.name} is a paced model, which has no weights: only replayed jobs can use it")
        if not isinstance(model, PacedModel) and spec.paced is None:
            check_usable(model, spec.allow_unused_weights)
        self._job_dir = job_dir
        self._spec = spec
        self._model: Any = model
        self._settings = settings

    def make(self, plan: Membership, files: MemberFiles, begun: Task | None = None) -> Task:
        """Resume from the newest readable checkpoint of an earlier generation; without one ``begun``, or begin anew.

        Raises:
            PromptTunerError: the spec, its data or the model can not be used.
        """
        kind = self._kind()
        for folder, pointer in newest_checkpoint(self._job_dir, plan):
            try:
                return kind.resume(self._spec, self._model, folder, pointer)
            except (StateError, OSError, ValueError, KeyError) as error:
                files.journal(g=plan.generation, unreadable=str(folder), why=str(error))
        return begun or kind.begin(self._spec, self._model, plan, files, self._settings.bank_dirs)

    def restore(self, data: bytes) -> Task:
        """A task with the state that another member packed."""
        return self._kind().restore(self._spec, self._model, data)

    def _kind(self) -> type[TunerTask | PacedTask]:
        return TunerTask if self._spec.paced is None else PacedTask


def choose_backend(settings: ElasticSettings, model: LoadedModel | PacedModel) -> str:
    """``gloo``, or ``nccl`` where it is asked for and this worker has its own GPU.

    Raises:
        ConfigError: NCCL is demanded and can not work here.
    """
    if settings.backend == "gloo":
        return "gloo"
    possible = model.device.type == "cuda" and torch.distributed.is_nccl_available()
    if settings.backend == "nccl" and not possible:
        raise ConfigError("elastic.backend is nccl, but this worker has no CUDA device or torch has no NCCL; use gloo")
    # "auto" stays with gloo: all members must choose alike, and none can see whether the others' GPUs can be reached.
    return settings.backend if settings.backend == "nccl" else "gloo"
