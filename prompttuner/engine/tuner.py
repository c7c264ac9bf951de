"""The tuner: one soft prompt, one job, step by step, alike on every member; no files, no clock decisions."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prompttuner.engine.collective import Collective, Solo
from prompttuner.engine.history import Evaluation, Progress
from prompttuner.engine.initial import InitialPrompt
from prompttuner.engine.llm.encoding import Encoded, encode
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.llm.prefix import PrefixModel
from prompttuner.engine.llm.survival import check_targets
from prompttuner.engine.metrics import GENERATED, HOPELESS
from prompttuner.engine.rate import job_rate
from prompttuner.engine.sampling import SampleOrder
from prompttuner.engine.state import STATE_VERSION, TunerState, check_fits, fingerprint
from prompttuner.errors import PromptTunerError, SpecError
from prompttuner.protocol.jobs import Outcome
from prompttuner.spec.data import Sample, read_samples

__all__ = ["StepOutcome", "Tuner", "TuningData", "check_survival", "read_data"]

MAX_GRADIENT_NORM = 1.0
"""The usual bound, that of the Hugging Face Trainer too: one odd batch must not fill AdamW's second moment."""


@dataclass(frozen=True)
class TuningData:
    """Samples to train and to evaluate on."""

    train: Sequence[Sample]
    evaluation: Sequence[Sample]


@dataclass(frozen=True)
class StepOutcome:
    """One iteration."""

    step: int
    """Iterations done now, this one included."""
    loss: float
    """Mean loss of a target token over the global batch, before the update."""
    samples: int
    """Samples of all members together."""
    tokens: int
    """Target tokens of all members together."""
    ids: list[int]
    """The samples that this member used."""
    flags: list[float]
    """Each extra scalar, summed over the members."""
    seconds: float


def read_data(spec: Mapping[str, Any]) -> TuningData:
    """Read the data that a spec names; of the evaluation data the first ``eval_samples``.

    Raises:
        DataError: missing or broken, with the line.
    """
    return TuningData(read_samples(spec["train"]), read_samples(spec["eval"], spec.get("eval_samples")))


def check_survival(data: TuningData, loaded: LoadedModel, spec: Mapping[str, Any]) -> None:
    """Check that the model's vocabulary can say the targets.

    Raises:
        DataError: targets hold unknown tokens, and ``allow_unknown_tokens`` is not set.
    """
    allowed = bool(spec.get("allow_unknown_tokens"))
    for samples, key in ((data.train, "train"), (data.evaluation, "eval")):
        check_targets(samples, loaded.tokenizer, str(spec.get(key, key)), allowed)


class Tuner:
    """Tunes one soft prompt of a frozen model.

    Loss, gradient and evaluation are sums over samples, summed once more over the members in one all-reduce, and only
    then divided by the global number of target tokens. So nothing depends on how many members there are,
    floating-point rounding aside, and every member takes the same decisions from the same numbers. There is no random
    state: the samples of an iteration are a pure function of seed and step.

    Use::

        while not tuner.finished:
            if tuner.evaluation_due:
                tuner.evaluate(collective)
            else:
                tuner.train_step(collective)
    """

    def __init__(self, loaded: LoadedModel, spec: Mapping[str, Any], data: TuningData, initial: InitialPrompt) -> None:
        """Encode the data and set the initial prompt.

        Args:
            loaded: the frozen model.
            spec: the resolved spec (``JobSpec`` as JSON).
            data: see `read_data`.
            initial: see `initial_prompt`.

        Raises:
            DataError: a sample does not fit the model.
            SpecError: no template, unknown metric.
        """
        self.spec = dict(spec)
        self.target: dict[str, Any] = dict(spec["target"])
        if self.target["metric"] != "loss" and self.target["metric"] not in GENERATED:
            raise SpecError(f"unknown metric {self.target['metric']!r}; known are loss, {', '.join(GENERATED)}")
        self.loaded = loaded
        self.initial = initial
        length = initial.tensor.shape[0]
        template = spec["template"]
        self._prefix = PrefixModel(loaded, template)
        limits: dict[str, Any] = {
            "reserve": length, "max_positions": loaded.max_positions, "rows": loaded.rows,
            "reader": self._prefix.reader,
        }  # fmt: skip
        self._train = encode(
            data.train, template, loaded.tokenizer, source=str(spec.get("train", "training data")), **limits
        )
        self._eval = encode(
            data.evaluation, template, loaded.tokenizer, source=str(spec.get("eval", "evaluation data")), **limits
        )
        lengths = [sample.length for sample in self._train] if spec.get("bucketing") else None
        self._order = SampleOrder(len(self._train), spec["batch_size"], spec["seed"], lengths)
        self._generates = self.target["metric"] in GENERATED
        self._eval_widths = self._prefix.widths(length, self._eval, answering=self._generates)
        self._prompt = torch.nn.Parameter(initial.tensor.to(loaded.device, torch.float32).clone())
        self._rate = job_rate(spec, loaded)
        self._optimiser = self._make_optimiser()
        self._progress = Progress(self.target)
        self._step = 0
        self._loss_sum, self._loss_steps = 0.0, 0
        self._train_s = 0.0

    @property
    def step_index(self) -> int:
        """Iterations done."""
        return self._step

    @property
    def max_iterations(self) -> int:
        """Iterations after which the job ends in any case."""
        return int(self.spec["max_iterations"])

    @property
    def learning_rate(self) -> float:
        """Of AdamW, as it is now."""
        return self._rate if self._prefix.allowed else float(self.spec["learning_rate"])

    @property
    def progress(self) -> Progress:
        """Where the run stands: step, losses, metric."""
        return self._progress

    @property
    def prompt(self) -> torch.Tensor:
        """A copy of the present prompt, float32 [length, hidden] on the CPU."""
        return self._prompt.detach().cpu().clone()

    @property
    def result_prompt(self) -> torch.Tensor:
        """The prompt that is the result.

        The best one evaluated (when the target is reached, the one that reached it).
        """
        best = self._progress.best_prompt
        return self.prompt if best is None else best.clone()

    @property
    def train_seconds(self) -> float:
        """Time spent in training steps, those before a resume included."""
        return self._train_s

    @property
    def ita(self) -> int | None:
        """Iterations to the target accuracy; None until reached."""
        return self._progress.ita

    @property
    def reached(self) -> bool:
        """Whether the target has been reached."""
        return self.ita is not None

    @property
    def evaluation_due(self) -> bool:
        """Whether the evaluation set is to be scored at this step, and was not yet.

        It is scored at step 0, every ``eval_every`` steps, and at the end.
        """
        last = self._progress.last
        at_end = self._step >= self.max_iterations
        return (self._step % self.spec["eval_every"] == 0 or at_end) and (last is None or last.step != self._step)

    @property
    def finished(self) -> bool:
        """Target reached, or all iterations done and evaluated."""
        return self.reached or (self._step >= self.max_iterations and not self.evaluation_due)

    @property
    def outcome(self) -> Outcome:
        """``reached``, ``exhausted``, or ``stopped`` (neither yet)."""
        if self.reached:
            return "reached"
        return "exhausted" if self.finished else "stopped"

    @property
    def max_new_tokens(self) -> int:
        """How long a generated answer may get: as the longest target of the whole evaluation set."""
        return max(len(sample.target) for sample in self._eval)

    def share(self, possible: bool) -> None:
        """Compute the prompt once a step for all samples, if that is exact and ``possible``.

        With one member of a build that does not know of it all sum their steps as that one does, and take the learning
        rate that their spec states for it.
        """
        self._prefix.allowed = possible
        self._optimiser.param_groups[0]["lr"] = self.learning_rate

    def sample_ids(self, step: int) -> list[int]:
        """The samples of global step ``step``, of all members together."""
        return self._order.batch(step)

    def train_step(self, collective: Collective | None = None, flags: Sequence[float] = ()) -> StepOutcome:
        """One iteration with one all-reduce. If that raises, the tuner is as it was before.

        Args:
            collective: the members; alone when None.
            flags: scalars that are summed over the members in the same all-reduce (requests to stop, newer plans).
        """
        members = collective or Solo()
        started = time.monotonic()
        batch = self._order.batch(self._step)
        widths = self._prefix.widths(self._prompt.shape[0], [self._train[index] for index in batch])
        mine = slice(members.rank, None, members.world)
        ids = batch[mine]
        samples = [self._train[index] for index in ids]
        self._decide()
        sums = self._prefix.sums(self._prompt, samples, widths[mine])
        tokens = sum(len(sample.target) for sample in samples)
        scalars = torch.tensor([sums.loss, tokens, len(samples), *flags], dtype=torch.float64)
        flat = torch.cat([sums.gradient, scalars.to(self._prompt.device)])
        members.all_reduce_(flat)
        size = sums.gradient.numel()
        total_loss, total_tokens, total_samples, *summed = flat[size:].tolist()
        if not math.isfinite(total_loss):
            raise PromptTunerError(
                f"the loss is {total_loss} in iteration {self._step + 1}: tuning has diverged; lower learning_rate "
                f"(now {self.learning_rate:g}), or take dtype float32"
            )
        gradient = self._prefix.gradient_of(self._prompt, flat[:size], sums.shared)
        self._prompt.grad = (gradient / total_tokens).to(torch.float32)
        torch.nn.utils.clip_grad_norm_([self._prompt], MAX_GRADIENT_NORM, foreach=False)
        self._optimiser.step()
        self._prompt.grad = None
        loss = total_loss / total_tokens
        self._step += 1
        self._loss_sum, self._loss_steps = self._loss_sum + loss, self._loss_steps + 1
        seconds = time.monotonic() - started
        self._train_s += seconds
        return StepOutcome(self._step, loss, int(total_samples), int(total_tokens), ids, summed, seconds)

    def evaluate(self, collective: Collective | None = None) -> Evaluation:
        """Score the evaluation set, each member its share; records the result, and whether the target is reached."""
        members = collective or Solo()
        mine = slice(members.rank, None, members.world)
        sums = torch.tensor(
            self._scores(self._eval[mine], self._eval_widths[mine]), dtype=torch.float64, device=self._prompt.device
        )
        members.all_reduce_(sums)
        loss_sum, tokens, metric_sum, samples = sums.tolist()
        loss = loss_sum / tokens
        metric = loss if self.target["metric"] == "loss" else metric_sum / samples
        train_loss = self._loss_sum / self._loss_steps if self._loss_steps else None
        evaluation = Evaluation(self._step, loss, metric, train_loss, self._train_s)
        self._progress.add(evaluation, self.prompt)
        self._loss_sum, self._loss_steps = 0.0, 0
        return evaluation

    def state(self) -> TunerState:
        """A copy of everything that a resumed run needs."""
        self._decide()
        moments = self._optimiser.state.get(self._prompt, {})
        zero = torch.zeros_like(self._prompt)
        tensors = {
            "prompt": self.prompt,
            "exp_avg": moments.get("exp_avg", zero).cpu().clone(),
            "exp_avg_sq": moments.get("exp_avg_sq", zero).cpu().clone(),
            **{key: tensor.clone() for key, tensor in self._progress.tensors().items()},
        }
        meta = {
            "version": STATE_VERSION,
            "step": self._step,
            "fingerprint": fingerprint(self.spec),
            "sharing": self._prefix.sharing,
            "learning_rate": self._rate,
            "progress": self._progress.to_json(),
            "loss_sum": self._loss_sum,
            "loss_steps": self._loss_steps,
            "train_s": self._train_s,
            "origin": self.initial.origin,
            "warnings": self.initial.warnings,
        }
        return TunerState(tensors, meta)

    def load_state(self, state: TunerState) -> None:
        """Go on from a state; what follows is bit for bit what would have followed there.

        Raises:
            StateError: it belongs to another job.
        """
        check_fits(state.meta, self.spec)
        meta, tensors = state.meta, state.tensors
        self._prompt = torch.nn.Parameter(tensors["prompt"].to(self.loaded.device, torch.float32).clone())
        if "learning_rate" in meta:  # what the job began with; states of before have that of their spec
            self._rate = float(meta["learning_rate"])
        self._optimiser = self._make_optimiser()
        self._prefix.sharing = bool(meta.get("sharing", False))  # states of before know no sharing, and go on without
        self._step = int(meta["step"])
        if self._step:
            moments = {key: tensors[key].to(self.loaded.device).clone() for key in ("exp_avg", "exp_avg_sq")}
            self._optimiser.state[self._prompt] = {"step": torch.tensor(float(self._step)), **moments}
        self._progress = Progress.restore(self.target, meta["progress"], tensors)
        self._loss_sum, self._loss_steps = float(meta["loss_sum"]), int(meta["loss_steps"])
        self._train_s = float(meta["train_s"])
        self.initial = InitialPrompt(self.initial.tensor, meta["origin"], list(meta["warnings"]))

    def _make_optimiser(self) -> torch.optim.AdamW:
        return torch.optim.AdamW([self._prompt], lr=self.learning_rate, weight_decay=0.0, foreach=False)

    def _decide(self) -> None:
        """Find out, once in a job's life, whether the prompt's pass can be shared.

        A state that is gone on with says it.
        """
        if self._prefix.sharing is None:
            answer = self.max_new_tokens if self._generates else 0
            self._prefix.decide(self._prompt, [*self._train, *self._eval], answer)

    def _scores(self, samples: Sequence[Encoded], widths: Sequence[int]) -> list[float]:
        """Sums over samples: loss, target tokens, metric, number."""
        if not samples:
            return [0.0, 0.0, 0.0, 0.0]
        self._decide()
        prompt = self._prompt.detach()
        tokens = sum(len(sample.target) for sample in samples)
        metric = 0.0
        if not self._generates:
            return [self._prefix.losses(prompt, samples, widths), tokens, metric, len(samples)]
        name = self.target["metric"]
        loss, answers = self._prefix.scores(prompt, samples, widths, self.max_new_tokens, HOPELESS.get(name))
        score = GENERATED[name]
        metric = sum(score(answer, sample.text) for answer, sample in zip(answers, samples, strict=True))
        return [loss, tokens, metric, len(samples)]
