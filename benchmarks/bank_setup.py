"""For benchmarks/bank.py: the bank under test, and the choices made by measurement (features, fitting, versions)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bank_runs import Job, tune_many

from prompttuner.bank import Bank, Entry
from prompttuner.bank.index.clusters import cluster
from prompttuner.bank.index.shelf_index import refresh
from prompttuner.bank.lookup.features import DEFAULT_RECIPE, POOLINGS, embed_text, layer_features
from prompttuner.bank.lookup.fitting import fit_length
from prompttuner.bank.lookup.scoring import Scorer
from prompttuner.bank.lookup.strategies import Layers, choose
from prompttuner.engine.initial import fit_length as fit_start
from prompttuner.engine.llm.model import LoadedModel
from prompttuner.files import read_json, write_json
from prompttuner.smallmodel import tasks

__all__ = ["BankUnderTest", "Cache", "build_bank", "choose_features", "compare_fitting", "compare_versions"]

TEXTS_A_TASK = 6
TUNED_EVERY = 4
"""Prompts are tuned for every fourth seen task: tuning takes most of the time to set up."""
BUILD_CAP = 100
VERSION_CAP = 50


class Cache:
    """JSON values in a folder, one file a key."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Any:
        return read_json(self._path(key))

    def put(self, key: str, value: Any) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)

    def _path(self, key: str) -> Path:
        return self.root / f"{key}.json"


@dataclass
class BankUnderTest:
    """The entries in a fixed order, their prompts, and their two layers."""

    root: Path
    ids: list[str]
    entries: list[Entry]
    prompts: list[torch.Tensor]
    layers: Layers
    recipe: str


def build_bank(loaded: LoadedModel, cache: Cache, quick: bool, recipe: str) -> BankUnderTest:
    """Texts of every seen task, and prompts tuned for it from a vocabulary start (early and final version)."""
    bank = Bank.create(cache.root / "bank")
    shelf = bank.shelf(loaded.name)
    if not cache.get("built"):
        names = list(tasks.SEEN)[: 8 if quick else None]
        for number, name in enumerate(names):
            texts = np.random.default_rng(number).permutation(tasks.phrasings(tasks.SEEN[name]))[:TEXTS_A_TASK]
            for text in texts:
                shelf.add(Entry("text", loaded.name, text=str(text), task=name, source="benchmark"))
            if not quick and number % TUNED_EVERY == 0 and not cache.get(f"tuned/{name}"):
                _add_tuned(loaded, shelf, name)
                cache.put(f"tuned/{name}", True)
        cache.put("built", True)
    ids = shelf.ids()
    entries = [shelf.read(i) for i in ids]
    prompts = [
        embed_text(loaded, e.text) if e.kind == "text" else torch.from_numpy(shelf.prompt(e, loaded.hidden))
        for e in entries
    ]
    index = refresh(shelf)
    if index.recipe != recipe or not index.known.all():
        made = recipe_features(loaded, prompts)[recipe]
        index = refresh(shelf, dict(zip(ids, made, strict=True)), recipe, rebuild=True)
    place = {entry_id: number for number, entry_id in enumerate(ids)}
    groups = [[place[index.ids[int(r)]] for r in index.clusters.members(k)] for k in range(len(index.clusters.medoids))]
    heads = [place[index.ids[int(r)]] for r in index.clusters.medoids]
    return BankUnderTest(bank.root, ids, entries, prompts, Layers(heads, groups), recipe)


def _add_tuned(loaded: LoadedModel, shelf: Any, name: str) -> None:
    job = Job.make(loaded, tasks.SEEN[name], 1000, BUILD_CAP)
    job.spec["prompt_length"] = 8
    run = tune_many(loaded, job, [job.start(loaded, "vocab")], BUILD_CAP, keep=True)[0]
    for version, prompt in (("early", run.early), ("final", run.final)):
        if prompt is not None:
            about = Entry("soft", loaded.name, task=name, source="benchmark", version=version, quality={"ita": run.ita})
            shelf.add(about, prompt.numpy())
    print(f"  built {name}: {run.ita} iterations", flush=True)


def recipe_features(loaded: LoadedModel, prompts: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """Features by recipe: every layer, every pooling."""
    layers = int(loaded.model.config.num_hidden_layers)
    made = {}
    for pooling in POOLINGS:
        stacked = layer_features(loaded, prompts, list(range(layers + 1)), pooling)
        for layer in range(layers + 1):
            made[f"depth={layer / layers},pooling={pooling}"] = stacked[layer]
    return made


def choose_features(loaded: LoadedModel, bank: BankUnderTest, cache: Cache) -> dict[str, Any]:
    """For each recipe: how much a two-layer lookup loses against brute force, in loss; mean over *seen* tasks.

    The tasks' own entries are left out, as a new task has none. The targets of the benchmark are not used.
    """
    stored = cache.get("features")
    if stored is not None:
        return dict(stored)
    names = list(tasks.SEEN)[::6]
    tables = []
    for name in names:
        job = Job.make(loaded, tasks.SEEN[name], 2000, 1)
        scorer = Scorer(loaded, job.train[:8], lambda n: bank.prompts[n])
        losses = scorer(range(len(bank.prompts)), range(8)).mean(axis=1)
        losses[[n for n, entry in enumerate(bank.entries) if entry.task == name]] = np.inf
        tables.append(losses)
    result: dict[str, Any] = {}
    for recipe, features in recipe_features(loaded, bank.prompts).items():
        regrets, costs = [], []
        for seed in range(3):
            found = cluster(features, seed)
            layers = Layers(
                [int(m) for m in found.medoids], [found.members(k).tolist() for k in range(len(found.medoids))]
            )
            for losses in tables:
                for strategy in ("two-layer", "racing"):
                    choice = choose(strategy, layers, lambda c, s, t=losses: t[list(c)][:, None] + 0.0 * np.array(s), 1)
                    regrets.append(float(losses[choice.ranking[0]] - losses.min()))
                    costs.append(choice.evaluations / len(losses))
        result[recipe] = {"regret": round(float(np.mean(regrets)), 4), "scored": round(float(np.mean(costs)), 4)}
    best = min(result, key=lambda r: result[r]["regret"])
    summary = {"best": best, "used": DEFAULT_RECIPE, "tasks": len(names), "by_recipe": result}
    cache.put("features", summary)
    return summary


def compare_fitting(loaded: LoadedModel) -> dict[str, dict[str, float]]:
    """Median loss of tasks' own instructions at their own length, and filled up to a fixed one in several ways."""
    weight = loaded.model.get_input_embeddings().weight.detach().float()

    def repeat(p: torch.Tensor, n: int) -> torch.Tensor:
        return p.repeat(-(-n // len(p)), 1)[-n:]

    def mean(p: torch.Tensor, n: int) -> torch.Tensor:
        return torch.cat([weight.mean(0).expand(max(0, n - len(p)), -1), p])[-n:]

    ways = {"own length": lambda p, _n: p, "zeros": fit_length, "first": fit_start, "repeated": repeat, "mean": mean}
    result: dict[str, dict[str, float]] = {}
    for name, way in ways.items():
        for length in (12, 20):
            losses = []
            for task in list(tasks.HELD_OUT.values())[::3]:
                job = Job.make(loaded, task, 0, 1)
                fitted = [way(embed_text(loaded, text), length) for text in tasks.phrasings(task)[::9]]
                scorer = Scorer(loaded, job.train[:16], lambda n, f=fitted: f[n])
                losses.append(float(np.median(scorer(range(len(fitted)), range(16)).mean(axis=1))))
            result.setdefault(name, {})[str(length)] = round(float(np.median(losses)), 4)
    return result


def compare_versions(loaded: LoadedModel, bank: BankUnderTest, cache: Cache) -> dict[str, Any]:
    """Iterations from the early and from the final version of the same tuned prompt, on related held-out tasks."""
    stored = cache.get("versions")
    if stored is not None:
        return dict(stored)
    place = {(e.task, e.version): n for n, e in enumerate(bank.entries) if e.kind == "soft"}
    pairs = []
    for target in list(tasks.HELD_OUT.values())[::2]:
        related = [t for t in tasks.SEEN if t.partition("+")[0] == target.position.name]
        both = [t for t in related if (t, "early") in place and (t, "final") in place][:2]
        if not both:
            continue
        job = Job.make(loaded, target, 0, VERSION_CAP)
        starts = [bank.prompts[place[task, version]] for task in both for version in ("early", "final")]
        runs = tune_many(loaded, job, starts, VERSION_CAP)
        counted = [VERSION_CAP if run.ita is None else run.ita for run in runs]
        pairs += [[counted[i], counted[i + 1]] for i in range(0, len(counted), 2)]
    values = np.array(pairs, float)
    summary = {
        "pairs": len(pairs),
        "median_ita": {"early": float(np.median(values[:, 0])), "final": float(np.median(values[:, 1]))},
        "early_quicker": int((values[:, 0] < values[:, 1]).sum()),
        "final_quicker": int((values[:, 0] > values[:, 1]).sum()),
        "cap": VERSION_CAP,
    }
    cache.put("versions", summary)
    return summary
