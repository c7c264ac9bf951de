"""Scores of candidate prompts on a job's samples: frozen LLM, no gradients, each prompt's keys and values once."""

from __future__ import annotations

import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel

__all__ = ["Scorer"]

log = logging.getLogger(__name__)

CACHE_BYTES = 1 << 29
"""Keys and values kept for candidates that may be scored again on more samples."""
MAX_TOKENS = 1 << 13
"""Tokens of one forward pass, prompt and padding included: bounds memory whatever the candidates' number."""
MAX_LOGITS = 1 << 26
"""Logits of one forward pass, for LLMs with a large vocabulary."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
HALF_TOLERANCE = 1e-2
"""Relative difference of the first losses with and without kept keys and values beyond which they are not used. Half
types round that coarsely by themselves."""
CHECKED = 2
"""Samples that are compared, the longest and the shortest: a sliding window or a padding that matters shows there."""

IGNORED = -100

KeysValues = list[tuple[Tensor, Tensor]]


class Batch(NamedTuple):
    """Samples as tensors (samples, tokens), padded on the right: a causal LM does not see what follows."""

    ids: Tensor
    mask: Tensor
    targets: Tensor
    """The token that each position shall predict, or ``IGNORED``."""


class Scorer:
    """Callable (candidates, samples) -> losses (candidates, samples), as the strategies want it.

    A loss is the mean cross-entropy over one sample's target tokens; a candidate that is refused gets inf.

    Args:
        loaded: the frozen LLM.
        samples: tokenised samples.
        prompt: gives a candidate's embeddings (length, width); ``DataError`` refuses it.
        reuse: False computes every prefix anew (for comparison).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        samples: Sequence[Encoded],
        prompt: Callable[[int], Tensor | None],
        *,
        reuse: bool = True,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self._loaded = loaded
        self._samples = samples
        self._prompt = prompt
        self._reuse = reuse
        self._max_tokens = max_tokens
        self._model = loaded.model
        self._can_select = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters
        self._kept: OrderedDict[int, KeysValues] = OrderedDict()
        self._kept_bytes = 0
        self._checked = 0
        """Length of the longest prompt that was checked: only one that fills a sliding window may differ."""

    @property
    def samples(self) -> int:
        """How many samples there are to score on."""
        return len(self._samples)

    @torch.inference_mode()
    def __call__(self, candidates: Sequence[int], samples: Sequence[int]) -> NDArray[np.float64]:
        """Mean loss per target token, float64 of shape (candidates, samples); both are row numbers."""
        result = np.full((len(candidates), len(samples)), np.inf)
        prompts = {row: p for row, c in enumerate(candidates) if (p := self._prompt(c)) is not None}
        if not prompts or not samples:
            return result
        batch = _pad([self._samples[s] for s in samples], self._loaded.device)
        for length in sorted({prompt.shape[0] for prompt in prompts.values()}, reverse=True):
            rows = [row for row, prompt in prompts.items() if prompt.shape[0] == length]
            step = self._prompts_at_once(length, batch)
            for start in range(0, len(rows), step):
                group = rows[start : start + step]
                result[group] = self._losses([candidates[r] for r in group], [prompts[r] for r in group], batch)
        return result

    def _prompts_at_once(self, length: int, batch: Batch) -> int:
        """How many prompts of a length fit one forward pass."""
        count, width = batch.ids.shape
        columns = int((batch.targets != IGNORED).any(0).sum()) if self._can_select else width
        vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        by_tokens = self._max_tokens // ((length + width) * count)
        return max(1, min(by_tokens, MAX_LOGITS // (max(1, columns) * vocabulary * count)))

    def _losses(self, names: list[int], prompts: list[Tensor], batch: Batch) -> Any:
        if self._reuse and prompts[0].shape[0] > self._checked:
            self._checked = prompts[0].shape[0]
            self._check(names[:1], prompts[:1], batch)
        if self._reuse:
            try:
                return self._with_kept(names, prompts, batch)
            except Exception as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                self._give_up(f"{type(error).__name__}: {error}")
        return self._plain(prompts, batch)

    def _check(self, names: list[int], prompts: list[Tensor], batch: Batch) -> None:
        """Compare both ways on a few samples.

        Recurrent and hybrid models keep states that are no keys and values, and fail in ways of their own; for them the
        plain way is exact.
        """
        lengths = batch.mask.sum(1)
        rows = torch.unique(torch.stack([lengths.argmax(), lengths.argmin()]))[:CHECKED]
        few = Batch(*(part[rows] for part in batch))
        plain = self._plain(prompts, few)
        try:
            kept = self._with_kept(names, prompts, few)
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {error}")
            return
        tolerance = TOLERANCE.get(self._loaded.dtype, HALF_TOLERANCE)
        if not np.allclose(plain, kept, rtol=tolerance, atol=0.0):
            self._give_up(f"scores differ: {kept} with them, {plain} without")

    def _give_up(self, why: str) -> None:
        log.warning("keys and values of prompts are not kept for %s (%s)", self._loaded.name, why)
        self._reuse = False
        self._kept.clear()
        self._kept_bytes = 0

    def _plain(self, prompts: list[Tensor], batch: Batch) -> Any:
        """One pass over prompt and sample together."""
        ids, mask, targets = batch
        count, length = len(ids), prompts[0].shape[0]
        embedded = self._model.get_input_embeddings()(ids)
        rows = torch.cat([torch.cat([p.to(embedded)[None].expand(count, -1, -1), embedded], 1) for p in prompts])
        ones = torch.ones(count, length, dtype=mask.dtype, device=mask.device)
        full = torch.cat([ones, mask], 1).repeat(len(prompts), 1)
        return self._run(targets, length, len(prompts), inputs_embeds=rows, attention_mask=full, use_cache=False)

    def _with_kept(self, names: list[int], prompts: list[Tensor], batch: Batch) -> Any:
        """The samples after the kept keys and values of each prompt."""
        ids, mask, targets = batch
        count, length = len(ids), prompts[0].shape[0]
        cache = DynamicCache(config=self._model.config)
        for layer, parts in enumerate(zip(*self._keys_values(names, prompts), strict=True)):
            keys = torch.cat([kv[0] for kv in parts]).repeat_interleave(count, 0)
            values = torch.cat([kv[1] for kv in parts]).repeat_interleave(count, 0)
            cache.update(keys, values, layer)
        ones = torch.ones(count, length, dtype=mask.dtype, device=mask.device)
        full = torch.cat([ones, mask], 1).repeat(len(prompts), 1)
        ids = ids.repeat(len(prompts), 1)
        return self._run(
            targets, 0, len(prompts), input_ids=ids, attention_mask=full, past_key_values=cache, use_cache=True
        )

    def _run(self, targets: Tensor, skip: int, prompts: int, **inputs: Any) -> Any:
        """Mean loss over each row's targets, (prompts, samples); the first ``skip`` positions are the prompt's."""
        columns = (targets != IGNORED).any(0).nonzero()[:, 0]
        if self._can_select:
            logits = self._model(**inputs, logits_to_keep=columns + skip).logits
        else:
            logits = self._model(**inputs).logits[:, columns + skip]
        labels = targets[:, columns].repeat(prompts, 1)
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED
        )
        return (
            (losses.view(labels.shape).sum(1) / (labels != IGNORED).sum(1).clamp(min=1))
            .view(prompts, -1)
            .double()
            .cpu()
            .numpy()
        )

    def _keys_values(self, names: list[int], prompts: list[Tensor]) -> list[KeysValues]:
        fresh = [i for i, name in enumerate(names) if name not in self._kept]
        made: dict[int, KeysValues] = {}
        if fresh:
            stacked = torch.stack([prompts[i] for i in fresh]).to(self._loaded.device, self._loaded.dtype)
            keep_last = {"logits_to_keep": 1} if self._can_select else {}
            out = self._model(
                inputs_embeds=stacked,
                past_key_values=DynamicCache(config=self._model.config),
                use_cache=True,
                **keep_last,
            )
            layers = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
            for row, i in enumerate(fresh):
                made[names[i]] = [(k[row : row + 1], v[row : row + 1]) for k, v in layers]
        for name, parts in made.items():
            self._keep(name, parts)
        return [made[name] if name in made else self._kept[name] for name in names]

    def _keep(self, name: int, parts: KeysValues) -> None:
        size = sum(k.nbytes + v.nbytes for k, v in parts)
        while self._kept and self._kept_bytes + size > CACHE_BYTES:
            _, old = self._kept.popitem(last=False)
            self._kept_bytes -= sum(k.nbytes + v.nbytes for k, v in old)
        if size <= CACHE_BYTES:
            self._kept[name] = [(k.clone(), v.clone()) for k, v in parts]
            self._kept_bytes += size


def _pad(samples: Sequence[Encoded], device: torch.device) -> Batch:
    """Bring samples together. The last token of each is left out as input: nothing follows it.

    Where nothing is given before the target, its first token is not scored: it follows the prompt itself, whose keys
    and values are computed apart.
    """
    width = max(sample.length for sample in samples) - 1
    ids = torch.zeros(len(samples), max(1, width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    mask[:, 0] = 1
    targets = torch.full_like(ids, IGNORED)
    for i, sample in enumerate(samples):
        row = [*sample.prompt, *sample.target]
        first = max(1, len(sample.prompt))
        ids[i, : len(row) - 1] = torch.tensor(row[:-1], dtype=torch.long)
        mask[i, : len(row) - 1] = 1
        targets[i, first - 1 : len(row) - 1] = torch.tensor(row[first:], dtype=torch.long)
    return Batch(ids.to(device), mask.to(device), targets.to(device))
