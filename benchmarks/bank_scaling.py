"""How lookup and insertion grow with the bank: 300, 3,000 and 30,000 entries with synthetic features.

    python benchmarks/bank_scaling.py [--quick] [--json] [--save]

Features are drawn around centres (as many as sqrt(N)), and a candidate's loss grows with its distance from a wanted
point, so that strategies can be counted without an LLM. At 3,000 entries a real lookup runs on the small model as well:
its entries are instruction texts and mixtures of them; its time is that of one worker, and includes the race.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prompttuner import smallmodel
from prompttuner.bank import Bank, Entry
from prompttuner.bank.index.clusters import Clusters, cluster, insert, recluster_pays
from prompttuner.bank.index.shelf_index import DEFAULT_CAPACITY, load_index, refresh
from prompttuner.bank.lookup.features import DEFAULT_RECIPE
from prompttuner.bank.lookup.search import DEFAULT_SAMPLES, find_initial_prompt
from prompttuner.bank.lookup.strategies import Layers, choose
from prompttuner.engine.llm.model import load_model
from prompttuner.engine.tuner import TuningData
from prompttuner.smallmodel import tasks
from prompttuner.spec.data import Sample

WIDTH = 128
STRATEGIES = ("two-layer", "racing", "clst")
RESULTS = Path(__file__).parent / "results" / "bank_scaling.json"


def synthetic(count: int, seed: int = 0) -> np.ndarray:
    """Features (count, WIDTH) in about sqrt(count) groups."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(round(count**0.5), WIDTH))
    return (centres[rng.integers(len(centres), size=count)] + 0.4 * rng.normal(size=(count, WIDTH))).astype(np.float32)


def evaluations(features: np.ndarray, clusters: Clusters, tries: int) -> dict[str, dict[str, float]]:
    """Mean evaluations of each strategy as a share of brute force's, and the mean rank of what it finds."""
    layers = Layers(
        [int(m) for m in clusters.medoids], [clusters.members(k).tolist() for k in range(len(clusters.medoids))]
    )
    result: dict[str, dict[str, float]] = {}
    for name in STRATEGIES:
        costs, ranks = [], []
        for number in range(tries):
            rng = np.random.default_rng(number)
            wanted = features[rng.integers(len(features))] + 0.2 * rng.normal(size=WIDTH)
            level = np.linalg.norm(features - wanted, axis=1)
            noise = rng.normal(0, 0.2, size=DEFAULT_SAMPLES)
            choice = choose(
                name, layers, lambda c, s, v=level, e=noise: v[list(c)][:, None] + e[list(s)], DEFAULT_SAMPLES
            )
            costs.append(choice.evaluations)
            ranks.append(int((level < level[choice.ranking[0]]).sum()))
        share = float(np.mean(costs)) / (len(features) * DEFAULT_SAMPLES)
        result[name] = {"evaluations": round(float(np.mean(costs))), "of_brute_force": round(share, 4)}
        result[name]["median_rank"] = float(np.median(ranks))
    return result


def structure(count: int, tries: int) -> dict[str, Any]:
    """Time to cluster and to insert, and what lookups cost, for one size."""
    features = synthetic(count)
    begun = time.process_time()
    clusters = cluster(features[: count - 100])
    clustered = time.process_time() - begun
    begun = time.process_time()
    for row in range(count - 100, count):
        insert(clusters, features, row)
    inserted = (time.process_time() - begun) / 100
    begun = time.process_time()
    why = recluster_pays(clusters, features)
    asked = time.process_time() - begun
    return {
        "entries": count,
        "clusters": len(clusters.medoids),
        "cluster_cpu_s": round(clustered, 3),
        "insert_cpu_ms": round(1000 * inserted, 3),
        "recluster_check_cpu_ms": round(1000 * asked, 2),
        "recluster_after_100_more": bool(why),
        "strategies": evaluations(features, clusters, tries),
    }


def real_lookup(count: int, work: Path) -> dict[str, Any]:
    """Fill a bank folder with ``count`` texts of the small model's words, index it, look up and insert for real."""
    torch.set_num_threads(1)
    loaded = load_model(str(smallmodel.path()))
    shelf = Bank.create(work / "bank").shelf(loaded.name)
    rng = np.random.default_rng(0)
    texts = [text for task in tasks.SEEN.values() for text in tasks.phrasings(task)]
    picked = [texts[i] for i in rng.permutation(len(texts))[: min(count, len(texts))]]
    while len(picked) < count:
        one, two = rng.choice(len(texts), 2)
        picked.append(" ".join([*texts[one].split()[:4], *texts[two].split()[-4:]]))
    features = {}
    embedding = loaded.model.get_input_embeddings().weight.detach()
    for text in picked:
        entry_id = shelf.add(Entry("text", "small", text=text, source="benchmark"))
        features[entry_id] = embedding[loaded.tokenizer(text)["input_ids"]].mean(0).numpy()
    refresh(shelf, features, DEFAULT_RECIPE, capacity=10 * count, rebuild=True)
    train = [Sample(**s) for s in tasks.HELD_OUT["reverse+next2"].samples(0, 128)]
    spec = {"model": loaded.name, "template": "{input} {target}", "learning_rate": 0.03, "batch_size": 8, "seed": 0}
    spec |= {"prompt_length": None, "initial_prompt": "auto", "note": ""}
    begun, wall = time.process_time(), time.monotonic()
    found = find_initial_prompt(spec, loaded, TuningData(train, train[:8]), [shelf.bank.root], 600.0, 0)
    spent = {"cpu_s": round(time.process_time() - begun, 2), "wall_s": round(time.monotonic() - wall, 2)}
    begun = time.process_time()
    new = shelf.add(Entry("text", "small", text="one more prompt", source="benchmark"))
    added = time.process_time() - begun
    refresh(shelf, {new: rng.normal(size=loaded.hidden)}, DEFAULT_RECIPE, capacity=10 * count)
    return {
        "entries": len(load_index(shelf).ids),
        "lookup": spent | {"evaluations": found.report["evaluations"]},
        "of_brute_force": round(found.report["evaluations"] / found.report["brute_force_evaluations"], 4),
        "add_cpu_ms": round(1000 * added, 2),
        "index_update_cpu_ms": round(1000 * (time.process_time() - begun - added), 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without 30,000 entries; the real lookup on 300")
    parser.add_argument("--json", action="store_true", help="the figures as JSON in the last line")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    sizes = (300, 3000) if options.quick else (300, 3000, 30_000)
    rows = [structure(size, 5 if options.quick else 20) for size in sizes]
    with tempfile.TemporaryDirectory() as folder:
        real = real_lookup(300 if options.quick else DEFAULT_CAPACITY, Path(folder))
    print(
        f"{'entries':>8} {'clusters':>9} {'cluster s':>10} {'insert ms':>10}",
        *(f"{n + ' evals':>18}" for n in STRATEGIES),
    )
    for row in rows:
        costs = [row["strategies"][n] for n in STRATEGIES]
        shown = [f"{c['evaluations']:>9.0f} ({c['of_brute_force']:6.2%})" for c in costs]
        print(
            f"{row['entries']:8} {row['clusters']:9} {row['cluster_cpu_s']:10.2f} {row['insert_cpu_ms']:10.3f}", *shown
        )
    look = real["lookup"]
    print(
        f"real lookup at {real['entries']} entries: {look['cpu_s']:.1f} CPU s, {look['evaluations']} evaluations; ",
        end="",
    )
    print(f"adding one {real['add_cpu_ms']:.1f} ms, the index {real['index_update_cpu_ms']:.0f} ms")
    result = {"sizes": rows, "real": real, "cores": os.cpu_count(), "command": "python benchmarks/bank_scaling.py"}
    if options.save and not options.quick:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
