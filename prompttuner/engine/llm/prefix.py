"""Run a frozen causal LM behind a soft prompt: losses at target positions only, and greedy answers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from prompttuner.engine.llm.batching import Collated, collate, micro_batches
from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.generation import AnswerReader
from prompttuner.engine.llm.greedy import greedy
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.errors import ModelError

__all__ = ["PrefixModel"]

MAX_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Padded tokens in a micro-batch; lowered by itself when the memory of a GPU does not suffice."""

OVERHEAD = {"cpu": 96, "cuda": 2048}
"""What one more pass costs, in tokens: a GPU is idle while kernels are launched, a CPU hardly. The CPU's figure is
measured on the small model (some 70), and on the safe side; relative to a large model's tokens it is less."""


class PrefixModel:
    """A loaded model with ``prompt`` [length, hidden] before the embeddings of every sample.

    The head runs on target positions only: the full [samples, length, vocabulary] logits, which take most memory of
    a small model with a large vocabulary, never exist.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._model = loaded.model
        self._embed = loaded.model.get_input_embeddings()
        self._head = loaded.model.get_output_embeddings()
        if self._head is None:
            raise ModelError(f"model {loaded.name!r} has no language-model head; it is no causal language model")
        if "inputs_embeds" not in inspect.signature(loaded.model.forward).parameters:
            raise ModelError(
                f"model {loaded.name!r} takes no input embeddings, so no soft prompt can stand before its input"
            )
        tokenizer = loaded.tokenizer
        rows = loaded.rows  # a pad token that was added without a row for it: any other serves, since it is masked
        self._pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None and i < rows), 0)
        self._limit = self._max_tokens = MAX_TOKENS.get(loaded.device.type, MAX_TOKENS["cuda"])
        self._overhead = OVERHEAD.get(loaded.device.type, OVERHEAD["cuda"])

    def target_logits(self, prompt: torch.Tensor, batch: Collated) -> torch.Tensor:
        """Logits at the positions that predict the target tokens, [tokens, vocabulary], in the model's own type.

        Args:
            prompt: [length, hidden] for all samples, or [samples, length, hidden].
            batch: the samples.
        """
        count, width = batch.ids.shape
        given = self._embed(batch.ids)
        length = prompt.shape[-2]
        soft = prompt.to(given.dtype).expand(count, -1, -1)
        flat = batch.rows * (length + width) + length + batch.columns
        with self._head_at(flat):
            output = self._model(inputs_embeds=torch.cat([soft, given], dim=1), use_cache=False)
        logits: torch.Tensor = output.logits
        if logits.shape[1] != len(flat):
            raise ModelError(f"model {self.loaded.name!r} does not apply its head to hidden states as causal LMs do")
        return logits.squeeze(0)

    def widths(self, length: int, samples: Sequence[Encoded]) -> list[int]:
        """To how many tokens each sample of a step is padded behind a prompt of ``length``, by `micro_batches`.

        Given the samples of all members, this is the same everywhere: how a sample is padded, and with it the last bits
        of its result, does not depend on whose it is.
        """
        lengths = [sample.length + length for sample in samples]
        found = [0] * len(samples)
        for group in micro_batches(lengths, self._limit, self._overhead):
            for index in group:
                found[index] = max(samples[other].length for other in group)
        return found

    def token_losses(self, prompt: torch.Tensor, samples: Sequence[Encoded], width: int | None = None) -> torch.Tensor:
        """Negative log likelihood (nats) of each target token, [tokens], in one forward pass.

        It is computed in float32 (in float64 where the model is). ``prompt`` as in `target_logits`, ``width`` as in
        `collate`.
        """
        batch = collate(samples, self._pad, self.loaded.device, width)
        logits = self.target_logits(prompt, batch)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return functional.cross_entropy(wide, batch.targets, reduction="none")

    def gradient(
        self, prompt: torch.Tensor, samples: Sequence[Encoded], widths: Sequence[int] | None = None
    ) -> tuple[float, torch.Tensor]:
        """The samples' summed loss, and its gradient by ``prompt``, float64 [length, hidden].

        Each sample has a copy of the prompt of its own, and their gradients are summed in float64. On a CPU a sample's
        gradient does not depend on what else is in its batch, only on its padding; so with the `widths` of the whole
        step the sum, rounded to float32, is the same however the samples are dealt out to members.

        Args:
            prompt: [length, hidden].
            samples: those of this member.
            widths: of each of them; None: as these samples alone would be padded.

        Raises:
            ModelError: the memory of the GPU does not suffice for a single sample.
        """
        total = 0.0
        gradient = torch.zeros(prompt.shape, dtype=torch.float64, device=prompt.device)
        queue = self._split(prompt, samples, widths)
        while queue:
            width, group = queue.pop(0)
            each = prompt.detach().expand(len(group), -1, -1).clone().requires_grad_()
            try:
                losses = self.token_losses(each, group, width)
                losses.sum().backward()  # type: ignore[no-untyped-call]
                assert each.grad is not None
                loss, part = losses.sum(dtype=torch.float64).item(), each.grad.sum(0, dtype=torch.float64)
            except torch.cuda.OutOfMemoryError as error:
                queue = self._smaller(prompt, width, group, error) + queue
                continue
            total += loss
            gradient += part
        return total, gradient

    @torch.no_grad()
    def losses(self, prompt: torch.Tensor, samples: Sequence[Encoded], widths: Sequence[int] | None = None) -> float:
        """The samples' summed loss, without gradients; arguments as in `gradient`."""
        total = 0.0
        queue = self._split(prompt, samples, widths)
        while queue:
            width, group = queue.pop(0)
            try:
                total += self.token_losses(prompt, group, width).sum(dtype=torch.float64).item()
            except torch.cuda.OutOfMemoryError as error:
                queue = self._smaller(prompt, width, group, error) + queue
        return total

    @torch.no_grad()
    def answers(
        self,
        prompt: torch.Tensor,
        samples: Sequence[Encoded],
        max_new_tokens: int,
        reader: AnswerReader | None = None,
    ) -> list[str]:
        """Greedy answers to the samples' prompts, as ``reader`` reads them, in the order of ``samples``."""
        texts = [""] * len(samples)
        reader = reader or AnswerReader.of(self.loaded)
        lengths = [len(sample.prompt) + prompt.shape[0] + max_new_tokens for sample in samples]
        for group in micro_batches(lengths, self._max_tokens, 8 * self._overhead):
            rows = self._generate(prompt, [samples[i] for i in group], max_new_tokens, reader.ends)
            for index, row in zip(group, rows, strict=True):
                texts[index] = reader.text(row)
        return texts

    def _generate(
        self, prompt: torch.Tensor, samples: Sequence[Encoded], max_new_tokens: int, ends: frozenset[int]
    ) -> torch.Tensor:
        """New tokens, int64 [samples, up to max_new_tokens]; what follows an end token is padding."""
        if not self.loaded.pads_left:
            given = [self._embed(torch.tensor(sample.prompt, device=self.loaded.device).long()) for sample in samples]
            soft = prompt.to(self._embed.weight.dtype)
            rows = [torch.cat([soft, row]) for row in given]
            return greedy(self._model, rows, max_new_tokens, ends, self._pad)
        # Padded on the left, before the soft prompt: mask and positions then are what an unpadded sample would have.
        width = max(len(sample.prompt) for sample in samples)
        length, device = prompt.shape[0], self.loaded.device
        ids = torch.full((len(samples), width), self._pad, dtype=torch.int64, device=device)
        mask = torch.zeros((len(samples), length + width), dtype=torch.int64, device=device)
        weight = self._embed.weight
        embeds = torch.zeros((len(samples), length + width, weight.shape[1]), dtype=weight.dtype, device=device)
        for index, sample in enumerate(samples):
            count = len(sample.prompt)
            ids[index, width - count :] = torch.tensor(sample.prompt, dtype=torch.int64)
            mask[index, width - count :] = 1
        given = self._embed(ids)
        for index, sample in enumerate(samples):
            start = width - len(sample.prompt)
            embeds[index, start : start + length] = prompt.to(weight.dtype)
            embeds[index, start + length :] = given[index, start:]
        out: torch.Tensor = self._model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self._pad,
            eos_token_id=sorted(ends) or None,
        )
        return out

    @contextmanager
    def _head_at(self, positions: torch.Tensor) -> Iterator[None]:
        """Let the model's head see only the hidden states at flat ``positions`` (row-major over [samples, length]).

        The model's own forward still does all that it does around its head (scaling, soft caps, casts), so this holds
        for every family without knowing any.
        """

        def select(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = args[0]
            return (hidden.reshape(-1, hidden.shape[-1])[positions].unsqueeze(0), *args[1:])

        handle = self._head.register_forward_pre_hook(select)
        try:
            yield
        finally:
            handle.remove()

    def _split(
        self, prompt: torch.Tensor, samples: Sequence[Encoded], widths: Sequence[int] | None
    ) -> list[tuple[int, list[Encoded]]]:
        """Micro-batches and their widths, the widest first (so that a lack of memory shows at once)."""
        by_width: dict[int, list[Encoded]] = {}
        for sample, width in zip(samples, widths or self.widths(prompt.shape[0], samples), strict=True):
            by_width.setdefault(width, []).append(sample)
        groups = []
        for width in sorted(by_width, reverse=True):
            size = max(1, self._max_tokens // (width + prompt.shape[0]))
            group = by_width[width]
            groups += [(width, group[start : start + size]) for start in range(0, len(group), size)]
        return groups

    def _smaller(
        self, prompt: torch.Tensor, width: int, group: list[Encoded], error: Exception
    ) -> list[tuple[int, list[Encoded]]]:
        """Halve a micro-batch that did not fit, and all later ones."""
        if len(group) == 1:
            raise ModelError(
                f"model {self.loaded.name!r} has not enough memory to tune on one sample of {group[0].length} tokens "
                f"with a soft prompt of {prompt.shape[0]}: {str(error).splitlines()[0]}"
            ) from None
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(group) // 2
        self._max_tokens = min(self._max_tokens, (width + prompt.shape[0]) * half)
        return [(width, group[:half]), (width, group[half:])]
