"""What the Prompt Bank brings: iterations to target from its prompts against random, vocabulary and own-text starts.

    python benchmarks/bank.py [--quick] [--json] [--seeds N] [--work FOLDER]

A bank of at least 300 entries (instruction texts, and prompts tuned here) of the small model's *seen* tasks; the
targets are its *held-out* compositions: none of their instructions, in whatever words, is in the bank. Every start is
tuned with the same AdamW (3e-2, and 8 virtual tokens for random and vocabulary, as in PEFT's prompt-tuning example).
An evaluation is one candidate on one sample, a tuning step on one sample counts three. Runs that do not reach the
target count at the cap. Scaling is measured by ``benchmarks/bank_scaling.py``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bank_runs import BATCH, RATE, TARGET_LOSS, Job, tune_many
from bank_setup import BankUnderTest, Cache, build_bank, choose_features, compare_fitting, compare_versions

from prompttuner import smallmodel
from prompttuner.bank.folder.layout import model_key
from prompttuner.bank.lookup.features import DEFAULT_RECIPE
from prompttuner.bank.lookup.race import RaceSettings, race
from prompttuner.bank.lookup.scoring import Scorer
from prompttuner.bank.lookup.search import DEFAULT_SAMPLES, LookupSettings, find_initial_prompt
from prompttuner.bank.lookup.strategies import DEFAULT_STRATEGY, STRATEGIES, choose, full_cost
from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.engine.sampling import SampleOrder
from prompttuner.smallmodel import tasks

CAP = 100
PLAIN_LENGTH = 8
QUICK_CAP = 40
QUICK_TASKS = ["rotate_left+previous"]
ORACLE_BEST, ORACLE_RANDOM = 8, 6
CORRELATION_TASKS, CORRELATION_ENTRIES = 4, 8
RESULTS = Path(__file__).parent / "results"
FULL = ("brute-force", "flat-racing")
"""These score every entry, and so run on every fourth task with the first seed only."""
RACED = ("brute-force", "racing", "clst")
STARTS = ("random", "vocab", "text", "auto", "oracle")
PAIR_COLUMNS = ("task", "seed", "ita_vocab", "ita_bank", "lookup_s", "cap")


def thorough(job: Job) -> bool:
    """Whether every entry is scored for this job."""
    return job.seed == 0 and job.task.name in list(tasks.HELD_OUT)[::4]


class Table:
    """Losses (entries, samples), each computed once, kept in a file."""

    def __init__(self, scorer: Scorer, shape: tuple[int, int], path: Path) -> None:
        self._scorer, self._path = scorer, path
        self.losses = np.load(path) if path.exists() else np.full(shape, np.nan)

    def __call__(self, candidates: Sequence[int], samples: Sequence[int]) -> np.ndarray:
        rows, columns = list(candidates), list(samples)
        missing = [n for n in rows if np.isnan(self.losses[n, columns]).any()]
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            self.losses[np.ix_(part, columns)] = self._scorer(part, columns)
        return self.losses[np.ix_(rows, columns)]

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        np.save(self._path, self.losses)


class Benchmark:
    """Everything measured for one set of jobs; what was measured before is taken from the cache."""

    def __init__(self, loaded: LoadedModel, bank: BankUnderTest, cache: Cache, cap: int) -> None:
        self.loaded, self.bank, self.cache, self.cap = loaded, bank, cache, cap
        self.tables: dict[tuple[str, int], Table] = {}

    def itas(self, job: Job, starts: dict[str, torch.Tensor]) -> dict[str, int | None]:
        """Iterations to target by start; None where the cap was not enough."""
        known = {name: self.cache.get(f"ita-{self.cap}/{job.task.name}/{job.seed}/{name}") for name in starts}
        todo = [name for name, value in known.items() if value is None]
        if todo:
            runs = tune_many(self.loaded, job, [starts[name] for name in todo], self.cap)
            for name, run in zip(todo, runs, strict=True):
                known[name] = [run.ita]
                self.cache.put(f"ita-{self.cap}/{job.task.name}/{job.seed}/{name}", [run.ita])
        return {name: value[0] for name, value in known.items() if value is not None}

    def table(self, job: Job) -> Table:
        """Losses of entries on the samples a lookup would use, computed when asked for."""
        key = (job.task.name, job.seed)
        if key not in self.tables:
            order = np.random.default_rng([job.seed, 0xBA]).permutation(len(job.train))[:DEFAULT_SAMPLES]
            scorer = Scorer(self.loaded, [job.train[int(i)] for i in order], lambda n: self.bank.prompts[n])
            path = self.cache.root / "scores" / f"{job.task.name}-{job.seed}.npy"
            self.tables[key] = Table(scorer, (len(self.bank.prompts), len(order)), path)
        return self.tables[key]

    def scores(self, job: Job) -> np.ndarray:
        """Mean loss of every entry."""
        every = range(len(self.bank.prompts))
        means = self.table(job)(every, range(DEFAULT_SAMPLES)).mean(axis=1)
        self.table(job).save()
        return means

    def strategies(self, job: Job) -> dict[str, dict[str, Any]]:
        """What each strategy picks and what it costs; ``+ race`` tunes its finalists a few steps."""
        table, settings = self.table(job), RaceSettings()
        result: dict[str, dict[str, Any]] = {}
        for name in STRATEGIES:
            if name in FULL and not thorough(job):
                continue
            choice = choose(name, self.bank.layers, table, DEFAULT_SAMPLES)
            result[name] = {"pick": choice.ranking[0], "evaluations": choice.evaluations}
            if name not in RACED or (name != DEFAULT_STRATEGY and not thorough(job)):
                continue
            finalists = choice.ranking[: settings.finalists]
            pick, cost = self._raced(job, finalists, [choice.scores[n] for n in finalists], settings)
            result[f"{name} + race"] = {"pick": pick, "evaluations": choice.evaluations + cost}
        table.save()
        return result

    def _raced(self, job: Job, finalists: list[int], scores: list[float], settings: RaceSettings) -> tuple[int, int]:
        """The winner of a race, and what it cost."""
        key = f"race/{job.task.name}/{job.seed}/{settings}/{'-'.join(map(str, finalists))}".replace(" ", "")
        stored = self.cache.get(key)
        if stored is None:
            order = np.random.default_rng([job.seed, 0xBA]).permutation(len(job.train))
            scored = [job.train[int(i)] for i in order[:DEFAULT_SAMPLES]]
            steps = SampleOrder(len(job.train), BATCH, job.seed)
            batches = [[job.train[i] for i in steps.batch(step)] for step in range(sum(settings.steps))]
            starts = [self.bank.prompts[n] for n in finalists]
            done = race(self.loaded, starts, scores, batches, scored, learning_rate=RATE, settings=settings)
            stored = [finalists[done.order[0]], done.evaluations]
            self.cache.put(key, stored)
        return stored[0], stored[1]

    def lookup(self, job: Job) -> dict[str, Any]:
        """The product's own lookup, end to end, with its default settings and time enough."""
        key = f"lookup-{self.bank.recipe}/{job.task.name}/{job.seed}"
        stored = self.cache.get(key)
        if stored is None:
            begun = time.process_time()
            settings = LookupSettings(recipe=self.bank.recipe)
            found = find_initial_prompt(
                job.spec, self.loaded, job.data, [self.bank.root], 600.0, job.seed, settings=settings
            )
            stored = {"chosen": found.report["chosen"], "evaluations": found.report["evaluations"]}
            stored["cpu_s"] = round(time.process_time() - begun, 3)
            self.cache.put(key, stored)
        return stored

    def oracle(self, job: Job, picks: list[int]) -> int | None:
        """Iterations from the best of a sample of entries, each really tuned: best scores, random ones, all picks."""
        if thorough(job):
            means = self.scores(job)
        else:  # of the entries that any strategy has scored
            losses = self.table(job).losses
            means = np.where(np.isnan(losses[:, 0]), np.inf, np.nansum(losses, axis=1))
            means /= np.maximum(1, (~np.isnan(losses)).sum(axis=1))
        rng = np.random.default_rng([job.seed, 7])
        sample = [*np.argsort(means)[:ORACLE_BEST], *rng.choice(len(means), ORACLE_RANDOM, replace=False)]
        numbers = sorted({int(n) for n in sample} - set(picks))
        key = f"oracle-{self.bank.recipe}-{self.cap}/{job.task.name}/{job.seed}"
        stored = self.cache.get(key)
        if stored is None:
            known = [
                ita for n in picks if (ita := self.itas(job, {f"e{n}": self.bank.prompts[n]})[f"e{n}"]) is not None
            ]
            limit = min(known, default=self.cap)  # nothing is learned past the best pick
            runs = tune_many(
                self.loaded, job, [self.bank.prompts[n] for n in numbers], limit,
                stop_when=lambda runs, _step: any(run.ita is not None for run in runs),
            )  # fmt: skip
            stored = [min([*known, *(r.ita for r in runs if r.ita is not None)], default=None)]
            self.cache.put(key, stored)
        return stored[0]

    def correlation(self, job: Job) -> float:
        """Spearman's rank correlation of score and iterations, over entries spread evenly over the scores."""
        from scipy.stats import spearmanr

        means = self.scores(job)
        places = np.unique(np.linspace(0, len(means) - 1, CORRELATION_ENTRIES).round().astype(int) ** 2 // len(means))
        numbers = [int(n) for n in np.argsort(means)[places]]
        itas = self.itas(job, {f"e{n}": self.bank.prompts[n] for n in numbers})
        counted = [self.cap if itas[f"e{n}"] is None else itas[f"e{n}"] for n in numbers]
        return float(spearmanr(means[numbers], counted).statistic)


def measure(bench: Benchmark, jobs: list[Job], save: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All figures, and one row a job."""
    rows = []
    for job in jobs:
        found = bench.strategies(job)
        looked = bench.lookup(job)
        by_id = {entry_id: number for number, entry_id in enumerate(bench.bank.ids)}
        picked = {f"e{f['pick']}": bench.bank.prompts[f["pick"]] for f in found.values()}
        text = tasks.phrasings(job.task)[(job.seed * 7) % 48]
        starts = {kind: plain_start(bench.loaded, job, kind) for kind in ("random", "vocab")}
        starts |= {"text": job.start(bench.loaded, f"text:{text}"), **picked}
        chosen = by_id.get(looked["chosen"])
        if chosen is not None:
            starts[f"e{chosen}"] = bench.bank.prompts[chosen]
        itas = bench.itas(job, starts)
        auto = itas["vocab"] if chosen is None else itas[f"e{chosen}"]
        numbers = sorted({f["pick"] for f in found.values()} | ({chosen} if chosen is not None else set()))
        row: dict[str, Any] = {"task": job.task.name, "seed": job.seed, "lookup_s": looked["cpu_s"]}
        row |= {"random": itas["random"], "vocab": itas["vocab"], "text": itas["text"], "auto": auto}
        row |= {
            "oracle": bench.oracle(job, numbers) if job.seed == 0 else None,
            "auto_evaluations": looked["evaluations"],
        }
        row |= {
            "strategies": {n: {"ita": itas[f"e{f['pick']}"], "evaluations": f["evaluations"]} for n, f in found.items()}
        }
        rows.append(row)
        begun = STARTS if job.seed == 0 else STARTS[:-1]  # the oracle runs with the first seed only
        shown = "  ".join(f"{k} {'>' + str(bench.cap) if row[k] is None else row[k]}" for k in begun)
        if save:
            save_pairs(rows, bench.cap)
        print(f"  {row['task']:22} seed {row['seed']}  {shown}", flush=True)
    return summarise(bench, jobs, rows), rows


def plain_start(loaded: LoadedModel, job: Job, kind: str) -> torch.Tensor:
    """``random`` or ``vocab`` with 8 virtual tokens, as in PEFT's example; 20 do worse on the small model."""
    spec = {**job.spec, "prompt_length": PLAIN_LENGTH, "initial_prompt": kind}
    return initial_prompt(spec, loaded).tensor


def summarise(bench: Benchmark, jobs: list[Job], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over (task, seed), runs that were capped at the cap; the oracle's share over the jobs that have one."""
    cap = bench.cap

    def counted(values: list[int | None]) -> np.ndarray:
        return np.array([cap if value is None else value for value in values], float)

    def against(picked: list[tuple[dict[str, Any], int | None, int]]) -> dict[str, Any]:
        """Of (row, iterations, evaluations)."""
        itas, vocab = counted([ita for _, ita, _ in picked]), counted([row["vocab"] for row, _, _ in picked])
        known = [n for n, (row, _, _) in enumerate(picked) if row["seed"] == 0]
        oracle = counted([picked[n][0]["oracle"] for n in known])
        saving = float((vocab[known] - oracle).sum())
        return {
            "median_ita": float(np.median(itas)),
            "ita_ratio": round(float(np.median(itas / np.maximum(vocab, 1))), 4),
            "solved": round(float(np.mean([ita is not None for _, ita, _ in picked])), 4),
            "oracle_fraction": round(float((vocab[known] - itas[known]).sum()) / saving, 4) if saving else None,
            "eval_fraction": round(float(np.mean([n for _, _, n in picked])) / full, 4),
            "jobs": len(picked),
        }

    full = full_cost(bench.bank.layers, DEFAULT_SAMPLES)
    strategies = {
        name: against([(r, f["ita"], f["evaluations"]) for r in rows if (f := r["strategies"].get(name))])
        for name in rows[0]["strategies"]
    }
    auto = against([(r, r["auto"], r["auto_evaluations"]) for r in rows])
    first = [r for r in rows if r["seed"] == 0]
    of = {name: first if name == "oracle" else rows for name in STARTS}
    tried = [bench.correlation(job) for job in jobs if thorough(job)][:CORRELATION_TASKS]
    correlation = round(float(np.nanmean(tried)), 4) if np.isfinite(tried).any() else None
    return {
        "entries": len(bench.bank.ids),
        "clusters": len(bench.bank.layers.medoids),
        "targets": len({r["task"] for r in rows}),
        "seeds": len({r["seed"] for r in rows}),
        "jobs": len(rows),
        "cap": cap,
        "default": {"strategy": DEFAULT_STRATEGY, "race": LookupSettings().race is not None},
        "median_ita": {name: float(np.median(counted([r[name] for r in of[name]]))) for name in STARTS},
        "solved": {name: round(float(np.mean([r[name] is not None for r in of[name]])), 4) for name in STARTS},
        "ita_ratio": auto["ita_ratio"],
        "oracle_fraction": auto["oracle_fraction"],
        "eval_fraction": auto["eval_fraction"],
        "rank_correlation": correlation,
        "lookup_cpu_s": round(float(np.median([r["lookup_s"] for r in rows])), 3),
        "strategies": strategies,
    }


def show(result: dict[str, Any]) -> None:
    """The tables."""
    print(f"\n{result['jobs']} jobs on {result['targets']} tasks; {result['entries']} entries, ", end="")
    print(f"{result['clusters']} clusters")
    print(f"{'start':10} {'median ITA':>10} {'solved':>8}")
    for name, value in result["median_ita"].items():
        print(f"{name:10} {value:10.1f} {result['solved'][name]:8.0%}")
    print(f"\n{'strategy':22} {'ITA':>6} {'/ vocab':>8} {'of oracle':>10} {'evaluations':>12}")
    for name, row in result["strategies"].items():
        print(
            f"{name:22} {row['median_ita']:6.1f} {row['ita_ratio']:8.2f} {row['oracle_fraction'] or 0:10.0%} "
            f"{row['eval_fraction']:12.1%}"
        )
    print(
        f"\ndefault: ITA / vocabulary's {result['ita_ratio']:.2f} (target 0.50), "
        f"{result['oracle_fraction'] or 0:.0%} of the oracle's saving (90%), "
        f"{result['eval_fraction']:.1%} of brute force's evaluations (15%), "
        f"rank correlation {result['rank_correlation']}, lookup {result['lookup_cpu_s']:.1f} CPU seconds"
    )


def save_pairs(rows: list[dict[str, Any]], cap: int) -> None:
    """The empirical pairs that the simulator draws from."""
    with (RESULTS / "bank_pairs.csv").open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(PAIR_COLUMNS)
        for row in rows:
            pair = [cap if row[name] is None else row[name] for name in ("vocab", "auto")]
            writer.writerow([row["task"], row["seed"], *pair, row["lookup_s"], cap])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a small bank and few jobs, within a minute; not comparable"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON in the last line")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, help="the first so many targets only")
    parser.add_argument(
        "--work", type=Path, help="folder for what is computed once (default: below the temporary folder)"
    )
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="features other than the default's (not with --save)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/bank.json and bank_pairs.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(str(smallmodel.path()))
    cap = QUICK_CAP if options.quick else CAP
    label = f"prompttuner-bank-{model_key(str(smallmodel.path()))}{'-quick' if options.quick else ''}"
    cache = Cache(options.work or Path(tempfile.gettempdir()) / label)
    bank = build_bank(loaded, cache, quick=options.quick, recipe=options.recipe)
    names = QUICK_TASKS if options.quick else list(tasks.HELD_OUT)[: options.tasks]
    seeds = range(1 if options.quick else options.seeds)
    bench = Benchmark(loaded, bank, cache, cap)
    jobs = [Job.make(loaded, tasks.HELD_OUT[name], seed, cap) for seed in seeds for name in names]
    result, rows = measure(bench, jobs, options.save and not options.quick)
    if not options.quick:
        result |= {"features": choose_features(loaded, bank, cache), "fitting": compare_fitting(loaded)}
        result["versions"] = compare_versions(loaded, bank, cache)
    result |= {"recipe": bank.recipe, "target_loss": TARGET_LOSS, "learning_rate": RATE, "cores": os.cpu_count()}
    result |= {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": f"python benchmarks/bank.py --seeds {options.seeds} --save",
    }
    show(result)
    if options.save and not options.quick and options.recipe == DEFAULT_RECIPE:
        (RESULTS / "bank.json").write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")
        save_pairs(rows, cap)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
