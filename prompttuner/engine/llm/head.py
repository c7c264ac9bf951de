"""Losses at target positions: the head sees these alone, and never more logits at once than a bounded piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from prompttuner.engine.llm.model import LoadedModel
from prompttuner.errors import ModelError

__all__ = ["Finish", "TargetHead"]

MAX_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Most values that exist at once in the shape of logits, whatever the number of targets and the vocabulary; 64 MiB in
float32 on a CPU, 512 MiB on a GPU."""
SAME = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Relative difference up to which a model's logits are taken for those that a rule gives; 3e-2 for half types."""


@dataclass(frozen=True)
class Finish:
    """What a model does with its head's output: ``cap * tanh(factor * raw / cap)``."""

    factor: float = 1.0
    cap: float | None = None

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        """Finished logits, in float32 (in float64 where the model is)."""
        wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.factor != 1.0:
            wide = wide * self.factor
        return wide if self.cap is None else self.cap * torch.tanh(wide / self.cap)

    def apply_(self, wide: torch.Tensor, slope: bool) -> torch.Tensor | None:
        """The same in place; the slope of the cap, where there is one and it is asked for."""
        if self.factor != 1.0:
            wide.mul_(self.factor)
        if self.cap is None:
            return None
        wide.div_(self.cap).tanh_()
        found = 1.0 - wide * wide if slope else None
        wide.mul_(self.cap)
        return found

    def copies(self, dtype: torch.dtype) -> int:
        """How many tensors in the shape of logits there are at once: themselves, a wider form, a cap's slope."""
        return 1 + (dtype not in {torch.float32, torch.float64}) + (self.cap is not None)


class TargetHead:
    """A model's head, applied to chosen positions.

    The backbone runs once. Then the hidden states of target positions pass through the head piece by piece, and each
    piece's gradient is taken before the next: logits take most of the memory of a model with a large vocabulary. What
    the model does around its head (scaling, soft caps) is found by comparison with its own logits at the first pass;
    where none of these rules fits, all logits come from the model itself, in one piece.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._model = loaded.model
        self._head = loaded.model.get_output_embeddings()
        if self._head is None:
            raise ModelError(f"model {loaded.name!r} has no language-model head; it is no causal language model")
        self._finish: Finish | None = None
        self._whole = False
        self.max_logits = MAX_LOGITS.get(loaded.device.type, MAX_LOGITS["cuda"])

    def logits(self, positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """The model's own logits [positions, vocabulary] at flat ``positions`` (row-major over [samples, length])."""
        with self._seen(positions, whole=True) as seen:
            logits: torch.Tensor = self._model(**inputs).logits
        self._check(logits, len(positions))
        del seen
        return logits.squeeze(0)

    def run(self, positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Run the model; returns its head's inputs [positions, hidden] at flat ``positions``.

        Where no rule fits its head's output it returns the model's own logits instead, as `losses` and `best` know.
        """
        if not self._whole:
            with self._seen(positions[:1] if len(positions) else positions, whole=False) as seen:
                seen.wanted = positions
                output = self._model(**inputs)
            self._check(output.logits, min(1, len(positions)))
            assert seen.rows is not None
            if self._finish is None and len(positions):
                self._finish = self._find_finish(seen.rows[:1].detach(), output.logits[0].detach())
                self._whole = self._finish is None
            if not self._whole:
                return seen.rows
        return self.logits(positions, **inputs)

    def losses(self, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Negative log likelihood (nats) of each target [positions], from what `run` returned; differentiable."""
        if self._whole or self._finish is None:
            wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
            return functional.cross_entropy(wide, targets, reduction="none")
        losses: torch.Tensor = _Losses.apply(rows, targets, self._head, self._finish, self.piece)  # type: ignore[no-untyped-call]
        return losses

    @torch.no_grad()
    def best(self, rows: torch.Tensor) -> torch.Tensor:
        """The likeliest token at each position, int64 [positions], from what `run` returned."""
        if self._whole or self._finish is None:
            return rows.argmax(-1)
        parts = [self._finish(self._head(part)).argmax(-1) for part in torch.split(rows, self.piece)]
        return torch.cat(parts)

    @property
    def piece(self) -> int:
        """Positions that pass through the head at once."""
        copies = self._finish.copies(self.loaded.dtype) if self._finish else 1
        return max(1, self.max_logits // (copies * int(self._model.get_input_embeddings().weight.shape[0])))

    def _find_finish(self, row: torch.Tensor, wanted: torch.Tensor) -> Finish | None:
        with torch.no_grad():
            raw = self._head(row).float()
        wanted = wanted.float()
        near = SAME.get(self.loaded.dtype, 3e-2)
        factor = float((raw * wanted).sum() / (raw * raw).sum().clamp(min=1e-30))
        cap = getattr(self._model.config.get_text_config(), "final_logit_softcapping", None)
        rules = [Finish(), Finish(factor), *([Finish(cap=float(cap))] if cap else [])]
        bound = near * float(wanted.abs().max())
        return next((rule for rule in rules if float((rule(raw) - wanted).abs().max()) <= bound), None)

    def _check(self, logits: torch.Tensor, count: int) -> None:
        if logits.shape[1] != count:
            raise ModelError(f"model {self.loaded.name!r} does not apply its head to hidden states as causal LMs do")

    @contextmanager
    def _seen(self, shown: torch.Tensor, *, whole: bool) -> Iterator[_Seen]:
        """Let the head see only the hidden states at ``shown``; keep those at ``wanted``.

        The model's own forward still does all that it does around its head, so this holds for every family without
        knowing any.
        """
        seen = _Seen()

        def select(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            flat = args[0].reshape(-1, args[0].shape[-1])
            if not whole and seen.wanted is not None:
                seen.rows = flat[seen.wanted]
            return (flat[shown].unsqueeze(0), *args[1:])

        handle = self._head.register_forward_pre_hook(select)
        try:
            yield seen
        finally:
            handle.remove()


@dataclass
class _Seen:
    """Hidden states that passed by."""

    wanted: torch.Tensor | None = None
    rows: torch.Tensor | None = None


class _Losses(torch.autograd.Function):
    """Cross-entropy behind a head, piece by piece; the gradient by the hidden states is computed on the way."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, targets: torch.Tensor, head: Any, finish: Finish, piece: int
    ) -> torch.Tensor:
        wanted = bool(ctx.needs_input_grad[0])
        pairs = zip(torch.split(rows.detach(), piece), torch.split(targets, piece), strict=True)
        done = [_piece(hidden, target, head, finish, wanted) for hidden, target in pairs]
        if wanted:
            ctx.save_for_backward(torch.cat([gradient for _, gradient in done if gradient is not None]))
        return torch.cat([losses for losses, _ in done])

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (given[0].to(gradients.dtype)[:, None] * gradients, None, None, None, None)


def _piece(
    hidden: torch.Tensor, target: torch.Tensor, head: Any, finish: Finish, wanted: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Losses of some positions and their gradient by ``hidden``; logits become their own gradient in place."""
    with torch.set_grad_enabled(wanted):
        leaf = hidden.requires_grad_(wanted)
        raw = head(leaf)
    wide = raw.detach()
    if wide.dtype not in {torch.float32, torch.float64}:
        wide = wide.float()
    elif not isinstance(head, torch.nn.Linear):
        wide = wide.clone()  # another head may need its output for its gradient
    slope = finish.apply_(wide, wanted)
    column = target[:, None]
    wide.sub_(wide.amax(-1, keepdim=True))
    chosen = wide.gather(1, column)
    total = wide.exp_().sum(-1, keepdim=True)
    losses = (total.log() - chosen)[:, 0]
    if not wanted:
        return losses, None
    wide.div_(total).scatter_add_(1, column, torch.full_like(chosen, -1.0))
    if slope is not None:
        wide.mul_(slope)
    wide.mul_(finish.factor)
    (gradient,) = torch.autograd.grad(raw, leaf, wide.to(raw.dtype))
    return losses, gradient
