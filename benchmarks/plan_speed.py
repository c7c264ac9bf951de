"""How long one planning step takes, by size of the site: with actions, beside another build in the same run.

python benchmarks/plan_speed.py [--quick] [--json] [--out FILE] [--base FOLDER]

Each case is one snapshot (``CASES``); a plan is timed from the call to the list of its actions, texts not read (they
are made when read), and the median of some calls is given in CPU milliseconds of this process (``time.process_time``),
with the number of its actions. With ``--base`` (the folder of another build) both builds plan each case in turn, each
in a process of its own, so that both meet the same load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prompttuner.policy import get
from prompttuner.policy.contract.snapshot import (
    AgentPhase,
    Agents,
    Arrivals,
    JobPhase,
    Jobs,
    PoolProfile,
    SiteLimits,
    Snapshot,
)
from prompttuner.profiles import stated


@dataclass(frozen=True, slots=True)
class Case:
    """One size of site. One running job a busy GPU, a tenth of them with two."""

    gpus: int
    waiting: int
    llms: int = 3
    tight: bool = True
    """Deadlines of 1 to 4 times the job's work; loose: ten minutes and up to 30 times it."""
    idle: float = 0.05
    """Share of the GPUs that are idle."""


CASES = {
    "loose, 1,000 GPUs, 9,000 waiting": Case(1000, 9000, tight=False, idle=0.0),
    "tight, 1,000 GPUs, 9,000 waiting": Case(1000, 9000),
    "50 LLMs, loose": Case(1000, 9000, llms=50, tight=False),
    "50 LLMs, tight": Case(1000, 9000, llms=50),
    "200 LLMs, tight": Case(1000, 9000, llms=200),
    "90,000 waiting, tight": Case(1000, 90_000),
    "10,000 GPUs, 18,000 waiting, tight": Case(10_000, 18_000),
}


def snapshot_of(case: Case) -> Snapshot:
    """The case's snapshot; the same in every run."""
    rng = np.random.default_rng(8)
    known: list[PoolProfile] = list(stated(["gpt2-base", "gpt2-large", "vicuna-7b"]).values())
    pools = [replace(known[i % 3], name=f"{known[i % 3].name}-{i}") for i in range(case.llms)]
    busy = case.gpus - int(case.idle * case.gpus)
    running = int(busy / 1.1)
    n, now = case.waiting + running, 10_000.0
    submit = now - rng.uniform(0, 600, n)
    work = rng.lognormal(5.5, 0.8, n)
    phase = np.where(np.arange(n) < running, JobPhase.RUNNING, JobPhase.WAITING)
    pool = rng.integers(0, case.llms, n)
    spread = rng.uniform(1.0, 30.0, n)
    due = now + rng.uniform(1.0, 4.0, n) * work if case.tight else submit + 600 + spread * work
    phase_since = np.where(phase == JobPhase.RUNNING, now - 300.0, submit)
    jobs = Jobs(
        id=[f"j{i}" for i in range(n)],
        pool=pool,
        phase=phase.astype(np.int64),
        submit=submit,
        deadline=due,
        priority=np.zeros(n, dtype=np.int64),
        min_gpus=np.ones(n, dtype=np.int64),
        max_gpus=np.full(n, 8, dtype=np.int64),
        step_s=np.full(n, 0.5),
        iters_mid=work / 0.5,
        iters_hi=1.2 * work / 0.5,
        bank_factor_mid=np.where(phase == JobPhase.RUNNING, 1.0, 0.5),
        bank_factor_hi=np.where(phase == JobPhase.RUNNING, 1.0, 0.78),
        phase_since=phase_since,
        best_effort=np.zeros(n, dtype=np.bool_),
        stop_on_miss=np.zeros(n, dtype=np.bool_),
    )
    member = np.full(case.gpus, -1, dtype=np.int64)
    member[:running] = np.arange(running)
    member[running:busy] = np.arange(busy - running)
    agents = Agents(
        id=[f"a{i}" for i in range(case.gpus)],
        pool=np.where(member >= 0, pool[member], rng.integers(0, case.llms, case.gpus)),
        phase=np.where(member >= 0, int(AgentPhase.BUSY), int(AgentPhase.WARM)),
        job=member,
        gpus=np.ones(case.gpus, dtype=np.int64),
        since=np.full(case.gpus, now - 10.0),
        ready_at=np.full(case.gpus, now - 60.0),
        ends_at=np.full(case.gpus, np.inf),
    )
    times = [np.sort(submit[pool == p])[-256:] for p in range(case.llms)]
    return Snapshot(now, jobs, agents, pools, SiteLimits(gpus=case.gpus), Arrivals(times=times))


def measure(name: str, repeats: int = 5) -> dict[str, float]:
    """Median CPU milliseconds of planning one case, and its actions."""
    snapshot, policy = snapshot_of(CASES[name]), get("prompttuner")
    actions = len(policy.plan(snapshot).actions)
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        policy.plan(snapshot)
        taken.append(1000 * (time.process_time() - start))
    return {"ms": round(float(np.median(taken)), 1), "actions": actions}


def measure_in(folder: Path, name: str) -> dict[str, float]:
    """The same by the build in this folder, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    words = [sys.executable, __file__, "--case", name]
    found = subprocess.run(words, env=environment, cwd="/", capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(found.stdout)
    return answer


def main() -> None:
    """Print a line a case; with --json one object as last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first two cases only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the JSON object here too")
    parser.add_argument("--base", type=Path, help="folder of another build to compare with")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case)))
        return
    here = Path(__file__).resolve().parents[1]
    out: dict[str, object] = {"command": " ".join(["python benchmarks/plan_speed.py", *sys.argv[1:]])}
    cases: dict[str, dict[str, float]] = {}
    for name in list(CASES)[: 2 if options.quick else None]:
        row = measure_in(here, name)
        if options.base:
            base = measure_in(options.base.resolve(), name)
            again = measure_in(here, name)
            row["ms"] = round((row["ms"] + again["ms"]) / 2, 1)
            row |= {"base_ms": base["ms"], "base_actions": base["actions"], "times": round(base["ms"] / row["ms"], 1)}
        cases[name] = row
        print(f"{name:36s}", "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    out |= {"cores": os.cpu_count(), "load": os.getloadavg()[0], "cases": cases}
    if options.out:
        options.out.write_text(json.dumps(out, indent=1) + "\n")
    if options.json:
        print(json.dumps(out))


if __name__ == "__main__":
    main()
