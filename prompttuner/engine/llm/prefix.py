"""Run a frozen causal LM behind a soft prompt: losses at target positions only, and greedy answers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from prompttuner.engine.llm.batching import Collated, collate, micro_batches
from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.generation import AnswerReader
from prompttuner.engine.llm.greedy import Answer, continue_answers, generate
from prompttuner.engine.llm.head import TargetHead
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.engine.llm.plain_greedy import greedy
from prompttuner.engine.llm.probe import objection, probe_samples
from prompttuner.engine.llm.shared import PromptPass
from prompttuner.errors import ModelError

__all__ = ["PrefixModel", "StepSums"]

log = logging.getLogger(__name__)

MAX_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Padded tokens in a micro-batch; lowered by itself when the memory of a GPU does not suffice."""

OVERHEAD = {"cpu": 16, "cuda": 2048}
"""What one more pass costs, in tokens: a GPU is idle while kernels are launched, a CPU reads all weights again."""
CPU_CALLS = 70_000_000
"""What the calls of one more pass cost a CPU besides, in tokens times parameters: 70 tokens of the small model, half a
token of one with 135 million parameters."""


ANSWERING = 8
"""Writing an answer takes many passes, so that one more micro-batch costs this much more."""


class StepSums(NamedTuple):
    """What a member adds to a step."""

    loss: float
    gradient: torch.Tensor
    """Float64, flat: by the prompt [length x hidden]; where the prompt's pass is shared, then by its keys and
    values."""
    shared: PromptPass | None


class Scores(NamedTuple):
    """Of some samples, in their order."""

    loss: float
    """Summed over their target tokens."""
    answers: list[str]
    """Greedy answers as text without special tokens; a hopeless one may be cut short."""


class Pass(NamedTuple):
    """A pass over some samples."""

    rows: torch.Tensor
    """What `TargetHead.losses` wants, in the order of the target tokens."""
    batch: Collated
    leaves: list[torch.Tensor]
    """Each sample's copy of the prompt, or of its keys and values: [samples, ...]."""
    cache: DynamicCache | None
    """Keys and values of prompt and samples, where the prompt's pass is shared."""
    window: float
    """Tokens after which some layer of ``cache`` forgets."""


@dataclass(frozen=True)
class _Group:
    """A micro-batch: samples, their places, and the width they are padded to."""

    width: int
    places: list[int]
    samples: list[Encoded]

    def halves(self) -> list[_Group]:
        half = len(self.places) // 2
        cuts = (slice(None, half), slice(half, None))
        return [_Group(self.width, self.places[cut], self.samples[cut]) for cut in cuts]


class PrefixModel:
    """A loaded model with ``prompt`` [length, hidden] before the embeddings of every sample.

    The head runs on target positions only: the full [samples, length, vocabulary] logits, which take most memory of
    a small model with a large vocabulary, never exist. Where `sharing` holds, the prompt's own pass is done once for
    all samples of a step.
    """

    def __init__(self, loaded: LoadedModel, template: str | None = None) -> None:
        """``template``: of the data; it says how an answer ends and what of it is the template's own."""
        self.loaded = loaded
        self.reader = AnswerReader.of(loaded, template)
        self._model = loaded.model
        self._embed = loaded.model.get_input_embeddings()
        self._head = TargetHead(loaded)
        if "inputs_embeds" not in inspect.signature(loaded.model.forward).parameters:
            raise ModelError(
                f"model {loaded.name!r} takes no input embeddings, so no soft prompt can stand before its input"
            )
        tokenizer = loaded.tokenizer
        rows = loaded.rows  # a pad token that was added without a row for it: any other serves, since it is masked
        self._pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None and i < rows), 0)
        self._limit = self._max_tokens = MAX_TOKENS.get(loaded.device.type, MAX_TOKENS["cuda"])
        self._overhead = _overhead(loaded)
        self.sharing: bool | None = None
        """Whether the prompt's keys and values are computed once for all samples; None: not decided yet. The same on
        all members of a job, so it is part of its state."""
        self.allowed = True
        """False: not now, whatever `sharing` says."""

    def target_logits(self, prompt: torch.Tensor, batch: Collated) -> torch.Tensor:
        """Logits at the positions that predict the target tokens, [tokens, vocabulary], in the model's own type.

        Args:
            prompt: [length, hidden] for all samples, or [samples, length, hidden].
            batch: the samples.
        """
        positions, inputs = self._plain_inputs(prompt, batch)
        return self._head.logits(positions, **inputs)

    def widths(self, length: int, samples: Sequence[Encoded], *, answering: bool = False) -> list[int]:
        """To how many tokens each sample of a step is padded behind a prompt of ``length``, by `micro_batches`.

        Given the samples of all members, this is the same everywhere: how a sample is padded, and with it the last bits
        of its result, does not depend on whose it is. ``answering``: answers will be written, too.
        """
        overhead = self._overhead * (ANSWERING if answering else 1)
        lengths = [sample.length + length for sample in samples]
        found = [0] * len(samples)
        for group in micro_batches(lengths, self._limit, overhead):
            for index in group:
                found[index] = max(samples[other].length for other in group)
        return found

    def sums(self, prompt: torch.Tensor, samples: Sequence[Encoded], widths: Sequence[int] | None = None) -> StepSums:
        """Loss and gradient summed over samples, to be summed over members and then given to `gradient_of`.

        Each sample has a copy of the prompt of its own (where the prompt's pass is shared: of its keys and values), and
        their gradients are summed in float64. On a CPU a sample's gradient does not depend on what else is in its
        batch, only on its padding; so with the `widths` of the whole step the sum, rounded to float32, is the same
        however the samples are dealt out to members.

        Args:
            prompt: [length, hidden].
            samples: those of this member.
            widths: of each of them; None: as these samples alone would be padded.

        Raises:
            ModelError: the memory of the GPU does not suffice for a single sample.
        """
        shared = self._prompt_pass(prompt, samples, train=True)
        size = prompt.numel()
        flat = torch.zeros(size + (shared.size if shared else 0), dtype=torch.float64, device=prompt.device)
        totals = [0.0]

        def add(whole: torch.Tensor | PromptPass, group: _Group) -> None:
            part = self.forward(whole, group.samples, group.width, train=True)
            losses = self._head.losses(part.rows, part.batch.targets)
            given = torch.autograd.grad(losses.sum(), part.leaves)
            totals[0] += losses.detach().sum(dtype=torch.float64).item()
            place = flat[:size] if isinstance(whole, torch.Tensor) else flat[size:]
            place += torch.cat([each.sum(0, dtype=torch.float64).reshape(-1) for each in given])

        self._each(prompt, samples, widths, shared, add)
        return StepSums(totals[0], flat, shared)

    def gradient_of(self, prompt: torch.Tensor, flat: torch.Tensor, shared: PromptPass | None) -> torch.Tensor:
        """The gradient by ``prompt``, float64 [length, hidden], from a `StepSums.gradient` of all members together."""
        size = prompt.numel()
        own = flat[:size].view(prompt.shape)
        return own if shared is None else own + shared.backward(flat[size:])

    def gradient(
        self, prompt: torch.Tensor, samples: Sequence[Encoded], widths: Sequence[int] | None = None
    ) -> tuple[float, torch.Tensor]:
        """The samples' summed loss, and its gradient by ``prompt``, float64 [length, hidden].

        Arguments are those of `sums`.
        """
        sums = self.sums(prompt, samples, widths)
        return sums.loss, self.gradient_of(prompt, sums.gradient, sums.shared)

    @torch.no_grad()
    def losses(self, prompt: torch.Tensor, samples: Sequence[Encoded], widths: Sequence[int] | None = None) -> float:
        """The samples' summed loss, without gradients; arguments as in `sums`."""
        totals = [0.0]

        def add(whole: torch.Tensor | PromptPass, group: _Group) -> None:
            part = self.forward(whole, group.samples, group.width, train=False)
            totals[0] += self._head.losses(part.rows, part.batch.targets).sum(dtype=torch.float64).item()

        self._each(prompt, samples, widths, self._prompt_pass(prompt, samples, train=False), add)
        return totals[0]

    def answers(self, prompt: torch.Tensor, samples: Sequence[Encoded], max_new_tokens: int) -> list[str]:
        """Greedy answers to the samples' prompts, as text without special tokens, in the order of ``samples``."""
        return self.scores(prompt, samples, None, max_new_tokens).answers

    @torch.no_grad()
    def scores(
        self,
        prompt: torch.Tensor,
        samples: Sequence[Encoded],
        widths: Sequence[int] | None,
        max_new_tokens: int,
        hopeless: Callable[[str, str], bool] | None = None,
    ) -> Scores:
        """Losses and greedy answers, from one pass over prompt, input and target where the prompt's pass is shared.

        The target serves as a draft: as long as the likeliest token is the target's, the answer is the target, and only
        where it leaves it the model writes on, from the keys and values of that pass. The answers are those of plain
        greedy decoding.

        Args:
            prompt, samples, widths: as in `sums`.
            max_new_tokens: most tokens of an answer.
            hopeless: (answer so far, target as text) -> whether how it goes on cannot matter; it is then cut short.
        """
        shared, length = self._prompt_pass(prompt, samples, train=False), prompt.shape[0]
        texts = [""] * len(samples)
        totals = [0.0]
        ends = sorted(self.reader.ends)
        if self.reader.frame is not None:
            hopeless = None  # what a template adds before an answer only shows when it is complete

        left: list[int] = []

        def add(whole: torch.Tensor | PromptPass, group: _Group) -> None:
            part = self.forward(whole, group.samples, group.width, train=False)
            loss = self._head.losses(part.rows, part.batch.targets).sum(dtype=torch.float64).item()
            if part.cache is None or length + group.width + max_new_tokens >= part.window:
                left.extend(group.places)
            else:
                drafts = self._drafts(part, group, length, max_new_tokens, ends, hopeless)
                continue_answers(self.loaded, self._head, part.cache, drafts, ends)
                for place, text in zip(group.places, self._texts([d.written for d in drafts]), strict=True):
                    texts[place] = text
            totals[0] += loss

        self._each(prompt, samples, widths, shared, add)
        for place, text in zip(left, self._generated(prompt, [samples[i] for i in left], max_new_tokens), strict=True):
            texts[place] = text
        return Scores(totals[0], texts)

    def decide(self, prompt: torch.Tensor, samples: Sequence[Encoded], longest_answer: int = 0) -> bool:
        """Try on ``samples`` whether the prompt's pass can be shared, set `sharing`, and log why not.

        ``longest_answer``: tokens of an answer to any of them, where that may be more than their targets have.
        """
        with torch.enable_grad():
            try:
                reason = objection(self, prompt.detach(), probe_samples(samples, longest_answer))
            except Exception as error:  # whatever a model does with a cache that it was not made for
                reason = f"{type(error).__name__}: {error}"
        self.sharing = reason is None
        if reason is not None:
            log.info("model %s: each sample computes the soft prompt anew, since %s", self.loaded.name, reason)
        return self.sharing

    def forward(self, whole: torch.Tensor | PromptPass, samples: Sequence[Encoded], width: int, *, train: bool) -> Pass:
        """One pass over samples behind a prompt or, where that is done, behind its keys and values."""
        batch = collate(samples, self._pad, self.loaded.device, width)
        if isinstance(whole, torch.Tensor):
            each = whole.detach().expand(len(samples), -1, -1).clone().requires_grad_(train)
            positions, inputs = self._plain_inputs(each, batch)
            return Pass(self._head.run(positions, **inputs), batch, [each], None, 0)
        cache, leaves = whole.fork(len(samples), train=train)
        positions = batch.rows * batch.ids.shape[1] + batch.columns
        given = self._embed(batch.ids)
        rows = self._head.run(positions, inputs_embeds=given, past_key_values=cache, use_cache=True)
        return Pass(rows, batch, leaves, cache, whole.window)

    def _plain_inputs(self, prompt: torch.Tensor, batch: Collated) -> tuple[torch.Tensor, dict[str, Any]]:
        """Flat positions before the target tokens, and what the model is given: prompt and samples together."""
        count, width = batch.ids.shape
        given = self._embed(batch.ids)
        length = prompt.shape[-2]
        soft = prompt.to(given.dtype).expand(count, -1, -1)
        positions = batch.rows * (length + width) + length + batch.columns
        return positions, {"inputs_embeds": torch.cat([soft, given], dim=1), "use_cache": False}

    def _prompt_pass(self, prompt: torch.Tensor, samples: Sequence[Encoded], *, train: bool) -> PromptPass | None:
        if self.sharing is None:
            self.decide(prompt, samples)
        if not (self.sharing and self.allowed):
            return None
        return PromptPass(self.loaded, self._head, prompt, train=train)

    def _generated(self, prompt: torch.Tensor, samples: Sequence[Encoded], max_new_tokens: int) -> list[str]:
        texts = [""] * len(samples)
        lengths = [len(sample.prompt) + prompt.shape[0] + max_new_tokens for sample in samples]
        for group in micro_batches(lengths, self._max_tokens, ANSWERING * self._overhead):
            rows = self._rows(prompt, [samples[i] for i in group], max_new_tokens)
            for index, row in zip(group, rows, strict=True):
                texts[index] = self.reader.text(row)
        return texts

    def _rows(self, prompt: torch.Tensor, samples: Sequence[Encoded], max_new_tokens: int) -> torch.Tensor:
        """New tokens, int64 [samples, up to max_new_tokens]."""
        ends = self.reader.ends
        if self.loaded.pads_left:
            return generate(self.loaded, self._pad, prompt, samples, max_new_tokens, ends)
        given = [self._embed(torch.tensor(sample.prompt, device=prompt.device).long()) for sample in samples]
        soft = prompt.to(self._embed.weight.dtype)
        return greedy(self._model, [torch.cat([soft, row]) for row in given], max_new_tokens, ends, self._pad)

    def _drafts(
        self,
        part: Pass,
        group: _Group,
        length: int,
        room: int,
        ends: Sequence[int],
        hopeless: Callable[[str, str], bool] | None,
    ) -> list[Answer]:
        """Answers as far as the pass over the targets has them: up to the first token that is not the target's."""
        likeliest = iter(self._head.best(part.rows).tolist())
        drafts = []
        for row, sample in enumerate(group.samples):
            tokens = [next(likeliest) for _ in sample.target]
            pairs = enumerate(zip(tokens, sample.target, strict=True))
            last = next((i for i, (one, other) in pairs if one != other or one in ends), len(tokens) - 1)
            written = tokens[: min(last + 1, room)]

            def cannot_matter(tokens: list[int], text: str = sample.text) -> bool:
                return hopeless is not None and hopeless(self._texts([tokens])[0], text)

            known = length + len(sample.prompt) + len(written) - 1
            drafts.append(Answer(row, known, written, room - len(written), cannot_matter))
        return drafts

    def _texts(self, answers: Sequence[list[int]]) -> list[str]:
        return [self.reader.text(tokens) for tokens in answers]

    def _each(
        self,
        prompt: torch.Tensor,
        samples: Sequence[Encoded],
        widths: Sequence[int] | None,
        shared: PromptPass | None,
        work: Callable[[torch.Tensor | PromptPass, _Group], None],
    ) -> None:
        """Work at micro-batch after micro-batch; one for which memory does not suffice is halved.

        The first target token of a sample without input follows the prompt itself: such samples are never behind a
        shared pass.
        """
        widths = widths or self.widths(prompt.shape[0], samples)
        queue: list[tuple[torch.Tensor | PromptPass, _Group]] = []
        for whole in (prompt, shared):
            if whole is not None:
                places = [i for i, s in enumerate(samples) if _shareable(s, shared) == (whole is shared)]
                chosen = [samples[i] for i in places]
                for group in self._split(prompt, chosen, [widths[i] for i in places]):
                    queue.append((whole, replace(group, places=[places[i] for i in group.places])))
        while queue:
            whole, group = queue.pop(0)
            try:
                work(whole, group)
            except torch.cuda.OutOfMemoryError as error:
                queue[:0] = [(whole, half) for half in self._smaller(prompt, group, error)]

    def _split(self, prompt: torch.Tensor, samples: Sequence[Encoded], widths: Sequence[int] | None) -> list[_Group]:
        """Micro-batches, the widest first (so that a lack of memory shows at once)."""
        by_width: dict[int, list[int]] = {}
        for place, width in enumerate(widths or self.widths(prompt.shape[0], samples)):
            by_width.setdefault(width, []).append(place)
        groups = []
        for width in sorted(by_width, reverse=True):
            size = max(1, self._max_tokens // (width + prompt.shape[0]))
            whole = by_width[width]
            cuts = [whole[start : start + size] for start in range(0, len(whole), size)]
            groups += [_Group(width, cut, [samples[i] for i in cut]) for cut in cuts]
        return groups

    def _smaller(self, prompt: torch.Tensor, group: _Group, error: Exception) -> list[_Group]:
        """Halve a micro-batch that did not fit, and all later ones."""
        if len(group.samples) == 1:
            raise ModelError(
                f"model {self.loaded.name!r} has not enough memory to tune on one sample of "
                f"{group.samples[0].length} tokens with a soft prompt of {prompt.shape[0]}: "
                f"{str(error).splitlines()[0]}"
            ) from None
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        self._max_tokens = min(self._max_tokens, (group.width + prompt.shape[0]) * (len(group.samples) // 2))
        return group.halves()


def _shareable(sample: Encoded, shared: PromptPass | None) -> bool:
    return shared is not None and bool(sample.prompt) and bool(sample.target)


def _overhead(loaded: LoadedModel) -> int:
    if loaded.device.type != "cpu":
        return OVERHEAD["cuda"]
    parameters = int(sum(p.numel() for p in loaded.model.parameters()))
    return OVERHEAD["cpu"] + CPU_CALLS // max(1_000_000, parameters)
