"""Train the small model from nothing, reproducibly: ``python tools/train_small_model.py --out FOLDER``.

About eight minutes of one CPU core. With the same versions of torch and transformers on the same kind of CPU the
weights come out the same; elsewhere they differ in the last bits, and the quality hardly does.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from prompttuner.files import write_bytes
from prompttuner.smallmodel.operations import LETTERS
from prompttuner.smallmodel.quality import measure
from prompttuner.smallmodel.tasks import CONNECTORS, MAX_LETTERS, MIN_LETTERS, SEEN, is_eval_input, phrasings

__all__ = ["build_model", "build_tokenizer", "main", "train"]

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
STEPS, BATCH, PEAK_RATE, WARMUP = 5000, 32, 2e-3, 100
HARD, HARD_WEIGHT = ("sort", "sort_down"), 3.0
"""Position operations that take longer to learn than all others are drawn this much more often."""


def build_tokenizer() -> Any:
    """A word-level tokenizer whose vocabulary is every instruction word and every single letter."""
    words = {word for task in SEEN.values() for text in phrasings(task) for word in text.split()}
    vocabulary = [PAD, EOS, UNKNOWN, "=", *LETTERS, *LETTERS.upper(), *sorted(words)]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def build_model(vocabulary: int) -> Any:
    """A Llama of about 0.87 million parameters with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.06,  # the usual 0.02 keeps so narrow a model on a plateau for a thousand steps
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config)


def _batch(rng: random.Random, tokenizer: Any, texts: dict[str, list[str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, int64 of shape [batch, length]; padded on the right, which a causal model cannot see."""
    names = list(SEEN)
    weights = [HARD_WEIGHT if SEEN[name].position.name in HARD else 1.0 for name in names]
    count = rng.randint(MIN_LETTERS, MAX_LETTERS)  # one length a batch: less padding
    rows: list[tuple[list[int], int]] = []
    while len(rows) < BATCH:
        letters = rng.choices(LETTERS, k=count)
        if is_eval_input(letters):
            continue
        name = rng.choices(names, weights)[0]
        prompt = tokenizer(f"{rng.choice(texts[name])} {' '.join(letters)} =")["input_ids"]
        target = tokenizer(" ".join(SEEN[name].target(letters)))["input_ids"]
        rows.append(([*prompt, *target, tokenizer.eos_token_id], len(prompt)))
    width = max(len(row) for row, _ in rows)
    ids = torch.full((BATCH, width), tokenizer.pad_token_id)
    labels = torch.full((BATCH, width), -100)
    for index, (row, start) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        labels[index, start : len(row)] = torch.tensor(row[start:])
    return ids, labels


def train(steps: int = STEPS, seed: int = 0, report_every: int = 200) -> tuple[Any, Any]:
    """Train on the seen compositions only; returns (model, tokenizer)."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer)).train()
    texts = {name: phrasings(task) for name, task in SEEN.items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps))),
    )
    started = time.monotonic()
    for step in range(1, steps + 1):
        ids, labels = _batch(rng, tokenizer, texts)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if report_every and step % report_every == 0:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True)
    return model.eval(), tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save it under the class name that every release of transformers knows; newer ones write one of their own."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_bytes()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    write_bytes(file, (json.dumps(settings, indent=2) + "\n").encode(), 0o644)


def main() -> None:
    """Command line: train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write (the model, its tokenizer, quality.json)"
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = train(options.steps, options.seed)
    model.save_pretrained(options.out)
    save_tokenizer(tokenizer, options.out)
    quality = measure(model, tokenizer) | {
        "steps": options.steps,
        "seed": options.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "connectors": list(CONNECTORS),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_bytes(options.out / "quality.json", (json.dumps(quality, indent=1) + "\n").encode(), 0o644)
    print(json.dumps({key: quality[key] for key in ("seen_mean", "held_out")}, indent=1))


if __name__ == "__main__":
    main()
