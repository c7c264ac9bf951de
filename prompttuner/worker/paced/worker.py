"""A paced worker: sleeps by a speed-up table where a GPU would compute; leases, resizes and files are the real ones.

For replays of traces on machines without the GPUs. Only code sets the spec key ``paced``; progress and result say so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from prompttuner.engine.collective import Collective
from prompttuner.errors import SpecError
from prompttuner.files import make_private_dir, write_json
from prompttuner.protocol.files import write_message
from prompttuner.protocol.jobs import CheckpointPointer, Done, Membership, Outcome, Progress
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.worker.member_files import MemberFiles
from prompttuner.worker.task import Stepped

__all__ = ["PacedTask"]


class PacedTask:
    """Counts steps of a stated length until a stated number of them is done.

    What they are is in :class:`prompttuner.protocol.spec.PacedSpec`.
    """

    def __init__(self, spec: ResolvedSpec, *, step: int = 0, looked_up: bool = False) -> None:
        paced = spec.paced
        if paced is None:
            raise SpecError("not a paced job: it has no paced figures")
        self._step_s, self._speedup = paced.step_s, paced.speedup
        self._needed = paced.needed(looked_up)
        self._spec = spec
        self._looked_up = looked_up
        self._batch = spec.batch_size
        self._limit = spec.max_iterations
        self._train_s = 0.0
        self._due: float | None = None
        self.step = step

    @property
    def position(self) -> int:
        """Steps done so far."""
        return self.step

    @property
    def outcome(self) -> Outcome | None:
        """How the job ended; None while it goes on."""
        if self.step >= self._needed:
            return "reached"
        return "exhausted" if self.step >= self._limit else None

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation comes before the next step: never."""
        return False

    def evaluate(self, collective: Collective) -> None:
        """Nothing is evaluated: the number of iterations is given."""

    def share(self, possible: bool) -> None:
        """Nothing is computed."""

    def sample_ids(self, step: int) -> Sequence[int]:
        """Consecutive numbers stand for samples."""
        return range(step * self._batch, (step + 1) * self._batch)

    def train_step(self, collective: Collective, flags: Sequence[float]) -> Stepped:
        """Sleep until the step would be done; against a running due time, so that wake-up delays do not add up."""
        begin = time.monotonic()
        length = self._step_s / self._speedup[min(collective.world, len(self._speedup)) - 1]
        late = self._due is None or begin - self._due > length
        self._due = (begin if late or self._due is None else self._due) + length
        time.sleep(max(0.0, self._due - begin))
        sums = torch.tensor([float(flag) for flag in flags], dtype=torch.float64)
        collective.all_reduce_(sums)
        self.step += 1
        self._train_s += length
        return Stepped(sums.tolist(), time.monotonic() - begin)

    def _state(self) -> CheckpointPointer:
        return CheckpointPointer(self.step, looked_up=self._looked_up, train_s=self._train_s, paced=True)

    def pack(self) -> bytes:
        """The state as bytes, for newcomers."""
        return json.dumps(self._state().to_json()).encode()

    @classmethod
    def begin(
        cls, spec: ResolvedSpec, _model: object, plan: Membership, files: MemberFiles, _bank_dirs: Sequence[str]
    ) -> PacedTask:
        """A new task, after the lookup if the plan grants one."""
        lookup_s = min(plan.lookup_s, 0.0 if spec.paced is None else spec.paced.lookup_s)
        if lookup_s > 0:
            files.progress("lookup")
            time.sleep(lookup_s)
        return cls(spec, looked_up=lookup_s > 0)

    @classmethod
    def resume(cls, spec: ResolvedSpec, _model: object, _folder: Path, pointer: CheckpointPointer) -> PacedTask:
        """Go on from a checkpoint."""
        task = cls(spec, step=pointer.step, looked_up=bool(pointer.looked_up))
        task._train_s = pointer.train_s or 0.0
        return task

    @classmethod
    def restore(cls, spec: ResolvedSpec, model: object, data: bytes) -> PacedTask:
        """Go on from what ``pack`` made."""
        return cls.resume(spec, model, Path(), CheckpointPointer.expect(json.loads(data)))

    def save(self, folder: Path) -> None:
        """The whole state is one small JSON file."""
        write_message(folder / CheckpointPointer.FILE, self._state())

    @property
    def _loss(self) -> float:
        return max(0.0, 1.0 - self.step / self._needed) if self._needed else 0.0

    def noted(self, progress: Progress) -> Progress:
        """The progress with what only this task knows."""
        return replace(progress, step=self.step, loss=self._loss, metric=self._loss, best=self._loss, paced=True)

    def write_result(self, folder: Path, outcome: Outcome) -> Done:
        """Write a stand-in for a result and what it says."""
        result = make_private_dir(folder / "result")
        report = Done(
            outcome,
            step=self.step,
            ita=self.step if outcome == "reached" else None,
            metric=self._loss,
            loss=self._loss,
            train_s=self._train_s,
            paced=True,
        )
        note = "a paced worker slept these steps; nothing was tuned"
        write_json(result / "result.json", {**report.to_json(), "note": note})
        return report
