"""How well the small model follows instructions: exact match by greedy decoding, for each task."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import torch

from prompttuner.smallmodel.tasks import HELD_OUT, SEEN, Task, phrasings

__all__ = ["exact_match", "measure"]

MAX_NEW_TOKENS = 16


@torch.no_grad()
def exact_match(model: Any, tokenizer: Any, task: Task, samples: int, seed: int = 0) -> float:
    """The share of ``samples`` evaluation inputs (never trained on) whose whole answer is right.

    Each input comes with a randomly chosen phrasing of the task's instruction.
    """
    rng = random.Random(seed)
    texts = phrasings(task)
    rows = list(task.samples(seed, samples, "eval"))
    prompts = [tokenizer(f"{rng.choice(texts)} {row['input']}")["input_ids"] for row in rows]
    width = max(len(ids) for ids in prompts)
    ids = torch.full((samples, width), tokenizer.pad_token_id)
    for index, prompt in enumerate(prompts):  # padded on the left: generation goes on at the right end
        ids[index, width - len(prompt) :] = torch.tensor(prompt)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    answers = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts_out = tokenizer.batch_decode(answers[:, width:], skip_special_tokens=True)
    right = [text.strip() == row["target"] for text, row in zip(texts_out, rows, strict=True)]
    return right.count(True) / samples


def measure(model: Any, tokenizer: Any, samples: int = 48, tasks: Iterable[str] | None = None) -> dict[str, Any]:
    """Exact match of seen and held-out tasks: ``{"samples", "seen", "seen_mean", "held_out"}``."""
    wanted = set(tasks) if tasks is not None else {*SEEN, *HELD_OUT}
    seen = {name: exact_match(model, tokenizer, task, samples) for name, task in SEEN.items() if name in wanted}
    held = {name: exact_match(model, tokenizer, task, samples) for name, task in HELD_OUT.items() if name in wanted}
    mean = sum(seen.values()) / len(seen) if seen else None
    return {"samples": samples, "seen": seen, "seen_mean": mean, "held_out": held}
