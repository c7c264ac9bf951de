"""For benchmarks/bank.py: jobs on the small model, and many prompts of one job tuned at once, as `Tuner` would each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.batching import collate
from prompttuner.engine.llm.encoding import Encoded, encode
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.sampling import SampleOrder
from prompttuner.engine.tuner import TuningData
from prompttuner.smallmodel import tasks
from prompttuner.spec.data import Sample

TARGET_LOSS = 0.1
EVAL_EVERY = 2
BATCH = 8
RATE = 0.03
BETAS, EPSILON, MAX_NORM = (0.9, 0.999), 1e-8, 1.0
ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Job:
    """A prompt-tuning job on one task; data and sample order depend on the seed."""

    task: tasks.Task
    seed: int
    data: TuningData
    train: list[Encoded]
    evaluation: list[Encoded]
    spec: dict[str, Any]

    @classmethod
    def make(cls, loaded: LoadedModel, task: tasks.Task, seed: int, cap: int) -> Job:
        train = [Sample(**s) for s in task.samples(seed, 256)]
        evaluation = [Sample(**s) for s in task.samples(seed, 16, "eval")]
        spec = {
            "model": loaded.name, "template": "{input} {target}", "learning_rate": RATE, "batch_size": BATCH,
            "seed": seed, "prompt_length": None, "initial_prompt": "auto", "max_iterations": cap, "note": "",
            "eval_every": EVAL_EVERY, "target": {"metric": "loss", "op": "<=", "value": TARGET_LOSS},
            "train": "train", "eval": "eval",
        }  # fmt: skip
        encoded = [encode(part, spec["template"], loaded.tokenizer) for part in (train, evaluation)]
        return cls(task, seed, TuningData(train, evaluation), *encoded, spec)

    def start(self, loaded: LoadedModel, kind: str) -> Tensor:
        """``random``, ``vocab`` or ``text:...`` as the product makes it."""
        return initial_prompt({**self.spec, "initial_prompt": kind}, loaded).tensor


@dataclass
class Run:
    """How one prompt fared."""

    ita: int | None
    first_loss: float
    loss: float = math.nan
    """At the last evaluation."""
    early: Tensor | None = None
    """The prompt when its loss was half-way to the target."""
    final: Tensor | None = None


def tune_many(
    loaded: LoadedModel,
    job: Job,
    prompts: Sequence[Tensor],
    cap: int,
    *,
    stop_when: Callable[[list[Run], int], bool] = lambda _runs, _step: False,
    keep: bool = False,
) -> list[Run]:
    """Tune every prompt (tokens, width) on its own until it reaches the target or ``cap``; as `Tuner` would.

    Prompts are stacked, shorter ones behind masked filler. ``stop_when(runs, step)`` ends all: ``ita`` None then means
    not by then.
    """
    longest = max(p.shape[0] for p in prompts)
    values = torch.stack([torch.cat([p.new_zeros(longest - p.shape[0], p.shape[1]), p]) for p in prompts])
    mask = torch.stack([(torch.arange(longest) >= longest - p.shape[0]).long() for p in prompts])
    first, second = torch.zeros_like(values), torch.zeros_like(values)
    order = SampleOrder(len(job.train), BATCH, job.seed)
    runs = [Run(None, math.nan) for _ in prompts]
    active = list(range(len(prompts)))
    for step in range(cap + 1):
        if step % EVAL_EVERY == 0 or step == cap:
            with torch.no_grad():
                losses = _losses(loaded, values[active], mask[active], job.evaluation).tolist()
            for place, loss in zip(list(active), losses, strict=True):
                run = runs[place]
                run.first_loss, run.loss = loss if step == 0 else run.first_loss, loss
                prompt = values[place, longest - prompts[place].shape[0] :].clone() if keep else None
                if run.early is None and loss <= (run.first_loss + TARGET_LOSS) / 2:
                    run.early = prompt
                if loss <= TARGET_LOSS:
                    run.ita, run.final = step, prompt
                    active.remove(place)
        if not active or step == cap or stop_when(runs, step):
            break
        part = values[active].requires_grad_(True)
        batch = [job.train[i] for i in order.batch(step)]
        gradient = torch.zeros_like(part)
        for begin in range(0, len(active), max(1, ROWS_AT_ONCE // BATCH)):
            piece = slice(begin, begin + max(1, ROWS_AT_ONCE // BATCH))
            loss = _losses(loaded, part[piece], mask[active][piece], batch).sum()
            gradient += torch.autograd.grad(loss, part)[0]
        norms = gradient.flatten(1).norm(dim=1).view(-1, 1, 1)
        gradient = gradient * (MAX_NORM / (norms + 1e-6)).clamp(max=1.0)
        first[active] = BETAS[0] * first[active] + (1 - BETAS[0]) * gradient
        second[active] = BETAS[1] * second[active] + (1 - BETAS[1]) * gradient**2
        mean = first[active] / (1 - BETAS[0] ** (step + 1))
        root = (second[active] / (1 - BETAS[1] ** (step + 1))).sqrt()
        values[active] = part.detach() - RATE * mean / (root + EPSILON)
    return runs


def _losses(loaded: LoadedModel, prompts: Tensor, mask: Tensor, samples: Sequence[Encoded]) -> Tensor:
    """Mean loss of a target token for each prompt (prompts, tokens, width)."""
    out = []
    for begin in range(0, len(prompts), max(1, ROWS_AT_ONCE // len(samples))):
        piece = slice(begin, begin + max(1, ROWS_AT_ONCE // len(samples)))
        out.append(_forward(loaded, prompts[piece], mask[piece], samples))
    return torch.cat(out)


def _forward(loaded: LoadedModel, prompts: Tensor, mask: Tensor, samples: Sequence[Encoded]) -> Tensor:
    count, length = prompts.shape[:2]
    batch = collate(samples, loaded.tokenizer.pad_token_id, loaded.device)
    rows, width = batch.ids.shape
    given = loaded.model.get_input_embeddings()(batch.ids)
    soft = prompts[:, None].expand(-1, rows, -1, -1).reshape(count * rows, length, -1)
    full = torch.cat([soft, given.repeat(count, 1, 1)], 1)
    attend = None
    if not bool(mask.all()):
        ones = torch.ones(rows, width, dtype=mask.dtype)
        attend = torch.cat([mask[:, None].expand(-1, rows, -1).reshape(count * rows, length), ones.repeat(count, 1)], 1)
    hidden = loaded.model.get_decoder()(inputs_embeds=full, attention_mask=attend, use_cache=False).last_hidden_state
    hidden = hidden.view(count, rows, length + width, -1)[:, batch.rows, length + batch.columns]
    logits = loaded.model.get_output_embeddings()(hidden)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.repeat(count), reduction="none")
    return losses.view(count, -1).mean(1)
