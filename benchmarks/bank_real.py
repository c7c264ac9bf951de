"""What the Prompt Bank brings on a real pretrained LLM and real-language tasks.

    python benchmarks/bank_real.py --model FOLDER [--work FOLDER] [--minutes M] [--quick] [--json]

``prompttuner fetch smollm2-135m`` makes the model's folder; ``--quick`` takes the shipped small model and two tasks, to
show that the code runs (its figures say nothing). Resumable: all that was measured is kept in ``--work``, and what is
done is shown whenever the time is up.

The bank has a text (the instruction) for every task, and the prompts tuned from the vocabulary that reached their
target. For each held-out task the product's lookup sees this bank without what belongs to the task itself. Runs (see
bank_real_runs.py) go to an exact match of 0.8 on 16 samples, evaluated every 4 iterations; one that does not reach it
counts at the cap.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bank_real_runs import check, tune
from safetensors.torch import load_file, save_file
from torch import Tensor

from prompttuner import smallmodel
from prompttuner.bank import Bank, Entry
from prompttuner.bank.folder.adapters import read_single_tensor
from prompttuner.bank.lookup.features import embed_text
from prompttuner.bank.lookup.search import LookupSettings, find_initial_prompt
from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.encoding import encode
from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.engine.tuner import TuningData, read_data
from prompttuner.files import make_private_dir, read_json, write_json
from prompttuner.realmodel.tasks.registry import TASKS, TEMPLATE, Task, write_dataset

LENGTH, BATCH, RATE, EVERY, SAMPLES, CAP = 20, 8, 0.01, 4, 16, 40
TARGET = {"metric": "exact_match", "op": ">=", "value": 0.8}
SEEDS = 3
HELD_OUT = (
    "third person", "plural", "base of gerund", "question", "past sentence", "ordinal", "last letter", "article",
    "superlative", "continent",
)  # fmt: skip
"""Chosen before any run: at most two of a family, inflections of several kinds among them."""
BUILT = (
    "past", "gerund", "singular", "negated sentence", "comparative", "first letter", "adverb", "number in words",
    "demonym", "future sentence", "date in words", "one or many", "participle", "base of past", "two of it",
    "even or odd", "negation", "number in digits", "part of speech", "base of third person", "money", "capitalised",
    "tense", "month", "quality", "spelt out", "weekday", "sentiment", "base of comparative", "ordinal in words",
)  # fmt: skip
"""Tasks whose prompts are tuned for the bank, in the order in which time is spent on them."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Work:
    """One benchmark's folder, model and sizes."""

    root: Path
    loaded: LoadedModel | None
    """None: only what was measured before is shown."""
    cap: int
    until: float

    def job(self, task: Task, seed: int) -> tuple[dict[str, Any], TuningData]:
        """The resolved spec of one job, and its data."""
        files = write_dataset(task, self.root / "data" / f"{task.slug}-{seed}", seed=seed)
        spec = {
            "model": self.loaded.name, "model_name": self.loaded.name, "template": TEMPLATE, "learning_rate": RATE,
            "batch_size": BATCH, "seed": seed, "prompt_length": None, "initial_prompt": "auto",
            "max_iterations": self.cap, "note": "", "eval_every": EVERY, "eval_samples": SAMPLES, "target": TARGET,
            "train": str(files.train), "eval": str(files.eval), "name": task.name,
        }  # fmt: skip
        return spec, read_data(spec)

    def run(self, task: Task, seed: int, name: str, start: Tensor | None = None) -> dict[str, Any]:
        """One job from one start (None: the vocabulary): iterations (None: not by the cap), the loss it began with."""
        folder = self.root / "runs" / task.slug / f"{seed}-{name}"
        known = read_json(folder / "figures.json")
        if known is not None:
            return dict(known)
        spec, data = self.job(task, seed)
        if start is None:
            start = initial_prompt({**spec, "initial_prompt": "vocab", "prompt_length": LENGTH}, self.loaded).tensor
        train, evaluation = (
            encode(part, TEMPLATE, self.loaded.tokenizer, source=task.name) for part in (data.train, data.evaluation)
        )
        begun, cpu = time.monotonic(), time.process_time()
        run = tune(
            self.loaded, start, train, evaluation,
            seed=seed, batch=BATCH, rate=RATE, every=EVERY, cap=self.cap, target=float(TARGET["value"]),
        )  # fmt: skip
        figures = {
            "ita": run.ita, "first_loss": run.evaluations[0][1], "first_metric": run.evaluations[0][2],
            "steps": run.steps, "wall_s": round(time.monotonic() - begun, 1), "evaluations": run.evaluations,
            "cpu_s": round(time.process_time() - cpu, 1), "train_cpu_s": round(run.train_cpu_s, 1),
        }  # fmt: skip
        make_private_dir(folder)
        assert run.prompt is not None
        save_file({"prompt": run.prompt}, folder / "prompt.safetensors")
        write_json(folder / "figures.json", figures)
        shown = figures["ita"] if figures["ita"] is not None else f">{self.cap}"
        curve = " ".join(f"{match:.2f}" for _, _, match in run.evaluations)
        print(f"{datetime.now(UTC):%H:%M} {task.name:22} {seed} {name:8} {shown!s:4} loss {figures['first_loss']:6.2f} "
              f"{figures['cpu_s']:6.0f} s of CPU, {figures['wall_s']:.0f} s; {curve}", flush=True)  # fmt: skip
        return figures

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until


def build(work: Work, tasks: tuple[str, ...]) -> None:
    """The runs from the vocabulary whose prompts stand in the bank."""
    for name in tasks:
        if work.over:
            return
        work.run(TASKS[name], 0, "vocab")


def fill_bank(work: Work) -> tuple[Path, dict[str, list[str]]]:
    """The bank as far as it goes, and the ids of each task's own entries."""
    bank = Bank.create(work.root / "bank")
    shelf = bank.shelf(work.loaded.name)
    own: dict[str, list[str]] = {}
    for task in TASKS.values():
        text = Entry("text", work.loaded.name, text=task.instruction, task=task.name, source="benchmark")
        own[task.name] = [shelf.add(text)]
        folder = work.root / "runs" / task.slug / "0-vocab"
        if (read_json(folder / "figures.json") or {}).get("ita") is not None:
            about = Entry("soft", work.loaded.name, task=task.name, source="benchmark", version="final")
            own[task.name].append(shelf.add(about, read_single_tensor(folder / "prompt.safetensors"), tuned_here=True))
    return bank.root, own


def look_up(work: Work, task: Task, seed: int) -> tuple[Tensor | None, dict[str, Any]]:
    """The product's own lookup with time enough, in a bank without this task's own entries.

    Returns the start that it gives (None: the vocabulary), and its report with seconds of CPU.
    """
    folder = make_private_dir(work.root / "runs" / task.slug / f"{seed}-bank")
    path = folder / "found.safetensors"
    report = read_json(folder / "lookup.json")
    if report is None:
        root, own = fill_bank(work)
        spec, data = work.job(task, seed)
        settings = LookupSettings(without=frozenset(own[task.name]))
        begun, cpu = time.monotonic(), time.process_time()
        found = find_initial_prompt(spec, work.loaded, data, [root], 3600.0, seed, settings=settings)
        others = [ids for name, ids in own.items() if name != task.name]
        report = {**found.report, "cpu_s": round(time.process_time() - cpu, 1), "texts": len(others)}
        report |= {"wall_s": round(time.monotonic() - begun, 1), "soft": sum(len(ids) - 1 for ids in others)}
        if found.prompt is not None:
            save_file({"prompt": found.prompt}, path)
        write_json(folder / "lookup.json", report)
        print(f"{datetime.now(UTC):%H:%M} {task.name:22} {seed} looked up: {report['why']} "
              f"({report['evaluations']} evaluations, {report['cpu_s']:.0f} s of CPU)", flush=True)  # fmt: skip
    return (load_file(path)["prompt"] if report["chosen"] else None), dict(report)


def _complete(work: Work, task: Task, seed: int) -> bool:
    """Whether both runs of a pair are there already."""
    folder = work.root / "runs" / task.slug
    plain, report = read_json(folder / f"{seed}-vocab" / "figures.json"), read_json(folder / f"{seed}-bank/lookup.json")
    if plain is None or report is None:
        return False
    return not report["chosen"] or (folder / f"{seed}-bank" / "figures.json").exists()


def pairs(work: Work, names: tuple[str, ...], seeds: int, texts: bool) -> Iterator[dict[str, Any]]:
    """One row for each held-out task and seed, as far as the time goes."""
    for seed in range(seeds):
        for name in names:
            task = TASKS[name]
            if work.over and not _complete(work, task, seed):
                continue
            plain = work.run(task, seed, "vocab")
            start, report = look_up(work, task, seed)
            banked = plain if start is None else work.run(task, seed, "bank", start)
            row = {"task": name, "family": task.family, "seed": seed, "ita_vocab": plain["ita"]}
            row |= {"ita_bank": banked["ita"], "loss_vocab": plain["first_loss"], "loss_bank": banked["first_loss"]}
            chosen = next((c for c in report.get("candidates", []) if c["name"] == report["chosen"]), {})
            row |= {"from": chosen.get("task", "vocabulary"), "kind": chosen.get("kind", ""), "soft": report["soft"]}
            row |= {"texts": report["texts"], "evaluations": report["evaluations"], "lookup_cpu_s": report["cpu_s"]}
            row |= {"step_cpu_s": round(plain["train_cpu_s"] / max(1, plain["steps"]), 2), "cap": work.cap}
            if texts:
                row["ita_text"] = work.run(task, seed, "text", embed_text(work.loaded, task.instruction))["ita"]
            yield row


def summary(rows: list[dict[str, Any]], cap: int) -> dict[str, Any]:
    """The figures that the targets are about; an iteration's price for the lookup is that of the same run."""
    if not rows:
        return {"pairs": 0}

    def counted(value: int | None) -> int:
        return cap if value is None else value

    factors = [counted(row["ita_bank"]) / max(1, counted(row["ita_vocab"])) for row in rows]
    saved = [counted(row["ita_vocab"]) - counted(row["ita_bank"]) for row in rows]
    net = [s - row["lookup_cpu_s"] / row["step_cpu_s"] for s, row in zip(saved, rows, strict=True)]
    tasks = sorted({row["task"] for row in rows})
    slower = []
    for task in tasks:
        mine = [row for row in rows if row["task"] == task]
        bank = median(counted(row["ita_bank"]) for row in mine)
        plain = median(counted(row["ita_vocab"]) for row in mine)
        if bank > max(1.1 * plain, plain + EVERY):
            slower.append(task)
    false_friends = [row for row in rows if row["loss_bank"] > row["loss_vocab"]]
    return {
        "pairs": len(rows), "tasks": len(tasks), "seeds": 1 + max(row["seed"] for row in rows), "cap": cap,
        "median_factor": round(median(factors), 3), "median_saved_iterations": median(saved),
        "median_saved_net_of_lookup": round(median(net), 1), "slower_tasks": slower,
        "false_friends": len(false_friends), "texts_won": sum(row["kind"] == "text" for row in rows),
        "entries": [rows[-1]["soft"], rows[-1]["texts"]],
    }  # fmt: skip


def save(rows: list[dict[str, Any]], figures: dict[str, Any], path: Path) -> None:
    make_private_dir(path.parent)
    columns = [*rows[0], *({"ita_text"} - rows[0].keys())] if rows else ["task"]
    with (path / "bank_real_pairs.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    (path / "bank_real.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="the real model's folder")
    parser.add_argument("--work", type=Path, default=Path(".bank_real"), help="where everything measured is kept")
    parser.add_argument("--minutes", type=float, default=150.0, help="0: only show what is there")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--built", type=int, default=len(BUILT), help="so many of the other tasks are tuned for first")
    parser.add_argument("--held-out", type=int, default=len(HELD_OUT))
    parser.add_argument("--texts", action="store_true", help="start from each task's own instruction, too")
    parser.add_argument("--quick", action="store_true", help="the shipped small model, two tasks, few iterations")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = smallmodel.path() if options.quick or options.model is None else options.model.absolute()
    if options.model is None and not options.quick:
        parser.error("give --model FOLDER ('prompttuner fetch smollm2-135m' makes one), or --quick")
    measuring = options.quick or options.minutes > 0
    until = time.monotonic() + 60 * (1.0 if options.quick else options.minutes)
    root = options.work.absolute() / ("quick" if options.quick else folder.name)
    work = Work(root, load_model(str(folder)) if measuring else None, 4 if options.quick else CAP, until)
    held_out, seeds = (HELD_OUT[:2], 1) if options.quick else (HELD_OUT[: options.held_out], options.seeds)
    if measuring:
        probe = encode(read_data(work.job(TASKS["plural"], 0)[0]).train[:BATCH], TEMPLATE, work.loaded.tokenizer)
        off = check(work.loaded, embed_text(work.loaded, TASKS["plural"].instruction), probe)
        print(f"gradient off from the product's by {off:.1e}", flush=True)
        build(work, held_out + (() if options.quick else BUILT[: options.built]))
    rows = list(pairs(work, held_out, seeds, options.texts))
    figures = summary(rows, work.cap)
    figures |= {
        "model": folder.name, "prompt_length": LENGTH, "batch_size": BATCH, "learning_rate": RATE, "target": TARGET,
        "cpu": platform.processor() or platform.machine(), "threads": 1, "load": round(os.getloadavg()[2], 1),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }  # fmt: skip
    if not options.quick:
        save(rows, figures, RESULTS)
    if options.json:
        print(json.dumps({"figures": figures, "rows": rows}))
    else:
        for key, value in figures.items():
            print(f"{key:28} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
