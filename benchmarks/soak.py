"""Hours of random faults: new examples of the stateful test, and between them long chaos on real Slurm and Postgres.

A *stateful* round runs the state machine of tests/controller/test_invariants.py (submits, scaling, kills inside ticks,
preemptions, lost nodes, Slurm errors, against a faithful fake with the real store) with a new seed and longer examples
than CI. A *chaos* round runs tests/slurm/test_chaos.py with 60 jobs and 100 faults on a throw-away Slurm cluster and
a Postgres server, where these are installed. Rounds take turns; the first failure ends the run, its seed repeats it.

    python benchmarks/soak.py [--hours H] [--quick] [--seed N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STATEFUL = ["tests/controller/test_invariants.py", "-k", "TestSite"]
CHAOS = ["tests/slurm/test_chaos.py"]
EXAMPLES, STEPS = 100, 60
CHAOS_JOBS, CHAOS_FAULTS = 60, 100
QUICK_EXAMPLES, QUICK_STEPS = 3, 15
CHAOS_EVERY = 3
"""One round in so many is chaos, beginning with the first."""


@dataclass
class Round:
    """One call of pytest."""

    kind: str
    seed: int
    passed: bool
    seconds: float
    counts: dict[str, int]
    """What the test says that it did."""


@dataclass
class Soak:
    """A whole run."""

    command: str
    cores: int
    hours: float = 0.0
    failures: int = 0
    totals: dict[str, int] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)

    def add(self, done: Round) -> None:
        self.rounds.append(done)
        self.failures += not done.passed
        self.totals = dict(Counter(self.totals) + Counter({f"{done.kind}_rounds": 1, **done.counts}))


def run_round(kind: str, seed: int, quick: bool) -> tuple[Round, str]:
    """One round, and the end of pytest's output."""
    examples, steps = (QUICK_EXAMPLES, QUICK_STEPS) if quick else (EXAMPLES, STEPS)
    if kind == "chaos":
        words = CHAOS
        env = {"PROMPTTUNER_CHAOS_JOBS": str(CHAOS_JOBS), "PROMPTTUNER_CHAOS_FAULTS": str(CHAOS_FAULTS),
               "PROMPTTUNER_CHAOS_SEED": str(seed)}  # fmt: skip
    else:
        words = [*STATEFUL, f"--hypothesis-seed={seed}"]
        env = {"PROMPTTUNER_EXAMPLES": str(examples), "PROMPTTUNER_STEPS": str(steps)}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counted = Path(folder) / "tally.jsonl"
        env |= {"CI": "true", "OMP_NUM_THREADS": "1", "PROMPTTUNER_TALLY": str(counted)}  # CI: a skipped test fails
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=0", *words],
            cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines = counted.read_text().splitlines() if counted.exists() else []
    counts: Counter[str] = sum((Counter(json.loads(line)) for line in lines), Counter())
    seconds = round(time.monotonic() - began, 1)
    return Round(kind, seed, done.returncode == 0, seconds, dict(counts)), (done.stdout + done.stderr)[-20000:]


def soak(hours: float, quick: bool, seed: int, as_json: bool) -> tuple[Soak, str]:
    """Run rounds until the time is over or one fails; returns what was done and the output of the failure."""
    state = Soak(" ".join(["python", *sys.argv]), os.cpu_count() or 0)
    installed = shutil.which("slurmctld", path=os.environ.get("PATH", "") + ":/usr/sbin") is not None
    began = time.monotonic()
    while True:
        number = len(state.rounds)
        chaos = installed and not quick and number % CHAOS_EVERY == 0
        done, output = run_round("chaos" if chaos else "stateful", seed + number, quick)
        state.add(done)
        state.hours = round((time.monotonic() - began) / 3600, 4)
        word = "passed" if done.passed else "FAILED"
        print(f"{done.kind} round, seed {done.seed}: {word} after {done.seconds:.0f} s {done.counts}", flush=True)
        if as_json:
            print(json.dumps({"benchmark": "soak", **asdict(state)}), flush=True)  # a run that is cut off counts so far
        if not done.passed:
            return state, output
        if quick or state.hours >= hours:
            return state, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round (the present time)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    state, output = soak(args.hours, args.quick, args.seed, args.json)
    if output:
        print(output)
    figures: dict[str, Any] = {"hours": state.hours, "failures": state.failures, **state.totals}
    width = max(len(key) for key in figures)
    for key, value in figures.items():
        print(f"{key.ljust(width)}  {value}")
    if args.json:
        print(json.dumps({"benchmark": "soak", **asdict(state)}))
    return 1 if state.failures else 0


if __name__ == "__main__":
    sys.exit(main())
