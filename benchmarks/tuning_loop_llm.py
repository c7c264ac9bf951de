"""The tuning step and the evaluation on a pretrained LLM: shared prompt, each sample its own prompt, PEFT + Trainer.

``python benchmarks/tuning_loop_llm.py MODEL_FOLDER``. All loops see the same samples in each step, start from the same
20 virtual tokens and run in one thread; CPU seconds count, each step with its shortest time over the rounds. ``plain``
is this build without sharing: the step of the build before but for the bounded logits. ``peft`` is one forward and
backward pass of PEFT's model as the Trainer does it, with dynamic padding, without the Trainer's own work: the ratio is
a lower bound of that to PEFT + Trainer. Evaluation: loss and greedy answers of 16 samples, first of an untrained
prompt, whose answers are all wrong, then with targets that are the model's own answers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers

from prompttuner.engine.llm.encoding import Encoded
from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.engine.llm.prefix import PrefixModel
from prompttuner.engine.metrics import cannot_match

PROMPT, BATCH, TARGET = 20, 8, 3
clock = time.process_time


def make_samples(count: int, length: int, loaded: LoadedModel) -> list[Encoded]:
    """Random tokens, ``length`` of them in the mean, two more or less, of which three and the end are learned."""
    rng = random.Random(length)
    tokens = range(100, loaded.model.get_input_embeddings().weight.shape[0] - 1)
    end = [int(loaded.tokenizer.eos_token_id)]
    lengths = [length + rng.randint(-2, 2) for _ in range(count)]
    drawn = [rng.choices(tokens, k=each - 1) for each in lengths]
    return [Encoded(ids[:-TARGET], ids[-TARGET:] + end, "") for ids in drawn]


def engine_of(loaded: LoadedModel, sharing: bool) -> PrefixModel:
    engine = PrefixModel(loaded)
    engine.sharing = sharing
    return engine


def peft_step(loaded: LoadedModel, prompt: torch.Tensor, samples: list[Encoded]) -> Callable[[], tuple[float, Any]]:
    """PEFT's loss and gradient of these samples."""
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(prompt), token_dim=loaded.hidden)
    wrapped = get_peft_model(loaded.model, config)
    weight = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(prompt)
    width = max(sample.length for sample in samples)
    ids = torch.zeros((len(samples), width), dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, sample in enumerate(samples):
        ids[row, : sample.length] = torch.tensor([*sample.prompt, *sample.target])
        mask[row, : sample.length] = 1
        labels[row, len(sample.prompt) : sample.length] = torch.tensor(sample.target)

    def step() -> tuple[float, Any]:
        weight.grad = None
        loss = wrapped(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        return loss.item(), weight.grad

    return step


def timed(variants: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Shortest CPU seconds of each, taking turns; and what each returned."""
    best: dict[str, float] = {}
    found: dict[str, Any] = {}
    for _ in range(rounds):
        for name, run in variants.items():
            begin = clock()
            found[name] = run()
            best[name] = min(best.get(name, float("inf")), clock() - begin)
    return best, found


def compare_steps(loaded: LoadedModel, prompt: torch.Tensor, length: int, rounds: int) -> dict[str, Any]:
    samples = make_samples(BATCH, length, loaded)
    tokens = sum(len(sample.target) for sample in samples)

    def ours(sharing: bool) -> Callable[[], tuple[float, Any]]:
        engine = engine_of(loaded, sharing)

        def step() -> tuple[float, Any]:
            loss, gradient = engine.gradient(prompt, samples)
            return loss / tokens, gradient / tokens

        return step

    variants = {"peft": peft_step(loaded, prompt, samples), "plain": ours(False), "shared": ours(True)}
    seconds, found = timed(variants, rounds)
    wanted = found["peft"][1].double()
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "speedup": {name: round(seconds["peft"] / value, 2) for name, value in seconds.items()},
        "loss_difference": abs(found["shared"][0] / found["peft"][0] - 1),
        "gradient_difference": float((found["shared"][1] - wanted).norm() / wanted.norm()),
    }


def compare_evaluations(loaded: LoadedModel, prompt: torch.Tensor, rounds: int) -> dict[str, Any]:
    untrained = make_samples(2 * BATCH, 12, loaded)
    untrained = [s._replace(text=loaded.tokenizer.decode(s.target, skip_special_tokens=True)) for s in untrained]
    engines = {"plain": engine_of(loaded, False), "shared": engine_of(loaded, True)}
    answers = engines["plain"].answers(prompt, untrained, TARGET + 1)
    ids = loaded.tokenizer(answers, add_special_tokens=False)["input_ids"]
    pairs = [(s, text, row) for s, text, row in zip(untrained, answers, ids, strict=True) if row]
    solved = [s._replace(target=row, text=text) for s, text, row in pairs]
    report: dict[str, Any] = {}
    for name, samples in (("all wrong", untrained), ("all right", solved)):
        runs = {
            way: lambda engine=engine, samples=samples: engine.scores(prompt, samples, None, TARGET + 1, cannot_match)
            for way, engine in engines.items()
        }
        seconds, found = timed(runs, rounds)
        right = [sum(a == s.text for a, s in zip(found[w].answers, samples, strict=True)) for w in engines]
        report[name] = {
            "samples": len(samples),
            "right": right,
            "seconds": {way: round(value, 3) for way, value in seconds.items()},
            "share": round(seconds["shared"] / seconds["plain"], 2),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a pretrained causal LM")
    parser.add_argument("--lengths", type=int, nargs="*", default=[12, 24, 64], help="mean tokens of a sample")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    load = os.getloadavg()[0]
    loaded = load_model(options.model)
    rows = torch.randint(100, 1000, (PROMPT,), generator=torch.Generator().manual_seed(0))
    prompt = loaded.model.get_input_embeddings().weight[rows].detach().clone()
    evaluation = compare_evaluations(loaded, prompt, options.rounds)
    for name, row in evaluation.items():
        print(f"evaluation, {name}: {row['seconds']} s, {row['share']:.2f} of plain, right answers {row['right']}")
    steps = {}
    for length in options.lengths:
        steps[length] = row = compare_steps(loaded, prompt, length, options.rounds)
        print(
            f"{length:3} tokens: {row['seconds']} s, {row['speedup']} x PEFT, differences of loss "
            f"{row['loss_difference']:.1e}, gradient {row['gradient_difference']:.1e}",
            flush=True,
        )
    if options.json:
        report = {
            "benchmark": "tuning_loop_llm",
            "command": "python benchmarks/tuning_loop_llm.py FOLDER --json",
            "model": options.model.name,
            "parameters": int(sum(p.numel() for p in loaded.model.parameters())),
            "prompt": PROMPT,
            "batch_size": BATCH,
            "rounds": options.rounds,
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            "cores": os.cpu_count(),
            "evaluation": evaluation,
            "steps": steps,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
