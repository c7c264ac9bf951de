"""The tuner as a member's task: begins with or without a Prompt Bank lookup, resumes, packs its state, reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from prompttuner.engine.checkpoint import load_checkpoint, save_checkpoint
from prompttuner.engine.collective import Collective
from prompttuner.engine.initial import InitialPrompt, initial_prompt
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.result import keep_prompt, write_result
from prompttuner.engine.state import TunerState, pack, unpack
from prompttuner.engine.tuner import Tuner, TuningData, check_survival, read_data
from prompttuner.errors import DataError, ModelError, PromptTunerError, SpoolError, StateError
from prompttuner.protocol.files import read_message, understood, write_message
from prompttuner.protocol.jobs import CheckpointPointer, Done, Membership, Outcome, Progress
from prompttuner.protocol.lookup import LookupReport
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.worker.member_files import MemberFiles
from prompttuner.worker.task import Stepped

__all__ = ["TunerTask"]

FORCED_S = 600.0
"""Granted for a lookup that the user insists on where the plan grants none."""
KEPT_EVALUATIONS = 20
"""The latest evaluations that progress.json tells; predictions need no more."""


class TunerTask:
    """A :class:`prompttuner.worker.task.Task` around a :class:`prompttuner.engine.tuner.Tuner`."""

    def __init__(self, tuner: Tuner) -> None:
        self.tuner = tuner
        self._loss: float | None = None

    @classmethod
    def begin(
        cls, spec: ResolvedSpec, model: LoadedModel, plan: Membership, files: MemberFiles, bank_dirs: Sequence[str]
    ) -> TunerTask:
        """A new task.

        ``auto`` is looked up in the Prompt Bank for at most ``plan.lookup_s`` seconds, if that is above 0; what came
        of it is in lookup.json. Without a bank, or if it fails, tuning begins from the vocabulary. ``bank`` is looked
        up in any case; ``bank:ENTRY`` is that entry, or the job fails.
        """
        values = spec.to_json()
        data = read_data(values)
        check_survival(data, model, values)
        found: list[str] = []

        def lookup() -> torch.Tensor | None:
            prompt: torch.Tensor | None
            if entry is not None:
                prompt, source = _named(entry, spec, model, bank_dirs)
            else:
                prompt, source = _look_up(spec, model, data, plan.lookup_s or FORCED_S, files, bank_dirs)
            found.append(source)
            return prompt

        asked = spec.initial_prompt
        entry = asked.value if asked.kind == "entry" else None
        looks = plan.lookup_s > 0 or asked.kind in {"bank", "entry"}
        initial = initial_prompt(values, model, lookup if looks else None)
        if found:
            initial.origin = found[0]
        try:
            return cls(Tuner(model, values, data, initial))
        except DataError as error:
            if not found or found[0] == "vocab" or entry is not None:
                raise
            _take_back(files, f"the prompt that was found leaves no room for the data ({error})")
            return cls(Tuner(model, values, data, initial_prompt(values, model)))

    @classmethod
    def resume(cls, spec: ResolvedSpec, model: LoadedModel, folder: Path, _pointer: CheckpointPointer) -> TunerTask:
        """Go on from the checkpoint in ``folder``.

        Raises:
            StateError: it is damaged or of another job.
        """
        state = load_checkpoint(folder)
        if state is None:
            raise StateError(f"the checkpoint in {folder} can not be read")
        return cls._from_state(spec, model, state)

    @classmethod
    def restore(cls, spec: ResolvedSpec, model: LoadedModel, data: bytes) -> TunerTask:
        """Go on from what another member's ``pack`` made."""
        return cls._from_state(spec, model, unpack(data))

    @classmethod
    def _from_state(cls, spec: ResolvedSpec, model: LoadedModel, state: TunerState) -> TunerTask:
        start = InitialPrompt(state.tensors["prompt"], str(state.meta["origin"]))
        values = spec.to_json()
        tuner = Tuner(model, values, read_data(values), start)
        tuner.load_state(state)
        return cls(tuner)

    @property
    def step(self) -> int:
        """Iterations done so far."""
        return self.tuner.step_index

    @property
    def position(self) -> int:
        """Two a step: the second when the evaluation that belongs to it is done."""
        return 2 * self.tuner.step_index + (0 if self.tuner.evaluation_due else 1)

    @property
    def outcome(self) -> Outcome | None:
        """How the job ended; None while it goes on."""
        return self.tuner.outcome if self.tuner.finished else None

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation comes before the next step."""
        return self.tuner.evaluation_due

    def evaluate(self, collective: Collective) -> None:
        """Evaluate the prompt together with the other members."""
        self.tuner.evaluate(collective)

    def share(self, possible: bool) -> None:
        """See `Tuner.share`."""
        self.tuner.share(possible)

    def sample_ids(self, step: int) -> Sequence[int]:
        """The samples of an iteration, the same for any number of members."""
        return self.tuner.sample_ids(step)

    def train_step(self, collective: Collective, flags: Sequence[float]) -> Stepped:
        """One iteration; ``flags`` travel with the gradient and come back summed."""
        done = self.tuner.train_step(collective, flags)
        self._loss = done.loss
        return Stepped(done.flags, done.seconds)

    def pack(self) -> bytes:
        """The whole state as bytes, for newcomers."""
        return pack(self.tuner.state())

    def save(self, folder: Path) -> None:
        """Write a checkpoint into ``folder``."""
        save_checkpoint(folder, self.tuner.state())

    def noted(self, progress: Progress) -> Progress:
        """The progress with what only this task knows."""
        history = self.tuner.progress
        last, best = history.last, history.best
        return replace(
            progress,
            step=self.tuner.step_index,
            loss=self._loss if self._loss is not None else (last.train_loss if last else None),
            metric=last.metric if last else None,
            best=best.metric if best else None,
            evaluations=tuple((e.step, e.metric) for e in history.evaluations[-KEPT_EVALUATIONS:]),
            initial_prompt=self.tuner.initial.origin,
        )

    def write_result(self, folder: Path, outcome: Outcome) -> Done:
        """A job that is stopped before its first evaluation has no result, only an outcome.

        Raises:
            SpoolError: the disk does not take it; the job is tried again.
            ModelError: the result cannot be written for another reason, now or ever; the prompt is kept beside it.
        """
        tuner = self.tuner
        best = tuner.progress.best
        if best is not None:
            try:
                write_result(folder / "result", tuner)
            except (SpoolError, OSError, MemoryError):
                raise
            except Exception as error:
                kept = keep_prompt(folder, tuner)
                raise ModelError(
                    f"the result cannot be written ({type(error).__name__}: {error}); the tuned prompt of step "
                    f"{best.step} is kept in {kept}"
                ) from error
        return Done(
            outcome,
            step=tuner.step_index,
            ita=tuner.ita,
            metric=best.metric if best else None,
            loss=best.loss if best else None,
            train_s=tuner.train_seconds,
        )


def _named(entry: str, spec: ResolvedSpec, model: LoadedModel, bank_dirs: Sequence[str]) -> tuple[torch.Tensor, str]:
    """The entry that the user named, and where it is from.

    Raises:
        DataError: it is gone, damaged, or of another width.
    """
    from prompttuner.bank.folder.named import named_entry
    from prompttuner.bank.lookup.features import embed_text

    try:
        shelf, entry_id = named_entry(map(Path, bank_dirs), spec.model, entry)
        about = shelf.read(entry_id)
        if about.kind == "text":
            prompt = embed_text(model, about.text)
        else:
            prompt = torch.from_numpy(shelf.prompt(about, model.hidden))
    except PromptTunerError as error:
        raise DataError(f"initial_prompt bank:{entry[:12]}: {error}") from error
    return prompt, f"bank:{entry_id[:12]}"


def _look_up(
    spec: ResolvedSpec,
    model: LoadedModel,
    data: TuningData,
    seconds: float,
    files: MemberFiles,
    bank_dirs: Sequence[str],
) -> tuple[torch.Tensor | None, str]:
    """The bank's prompt, None where it has none or fails, and where it is from.

    A lookup can make a job quicker, but never fail it.
    """
    files.progress("lookup")
    begin = time.monotonic()
    prompt, source = None, "vocab"
    try:
        from prompttuner.bank.lookup.search import find_initial_prompt

        found = find_initial_prompt(
            spec.to_json(), model, data, [Path(folder) for folder in bank_dirs], seconds, spec.seed
        )
        prompt, source, report = found.prompt, found.source, LookupReport.expect(found.report)
    except Exception as error:
        why = f"the lookup failed, tuning begins from the vocabulary: {type(error).__name__}: {error}"
        report = LookupReport(why=why)
    took = time.monotonic() - begin
    report = replace(report, source=report.source or source, seconds=took, granted_s=seconds)
    write_message(files.folder / LookupReport.FILE, report)
    return prompt, source


def _take_back(files: MemberFiles, why: str) -> None:
    """Say in lookup.json that tuning begins from the vocabulary after all."""
    path = files.folder / LookupReport.FILE
    report = understood(read_message(LookupReport, path)) or LookupReport()
    write_message(path, replace(report, source="vocab", chosen=None, why=why))
