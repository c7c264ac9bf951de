"""Hours of random faults: the controller's invariants with ever new seeds, and the scenarios on a real Slurm between.

Each round runs tests/controller/test_invariants.py (random submits, crashes, preemptions, Slurm errors against a
faithful fake, with the real store) with another seed and longer examples than CI; every SCENARIO_EVERY rounds the
scenarios of tests/slurm run on a throw-away cluster, if Slurm is installed. The first failure ends the run; its seed
repeats it.

    python benchmarks/soak.py [--hours H] [--quick] [--seed N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
INVARIANTS = "tests/controller/test_invariants.py"
SCENARIOS = "tests/slurm/test_scenarios.py"
EXAMPLES, STEPS = 200, 60
SCENARIO_EVERY = 20
QUICK_EXAMPLES, QUICK_STEPS = 3, 15


@dataclass
class Soak:
    """What a run has done so far."""

    rounds: int = 0
    examples: int = 0
    steps_each: int = 0
    scenario_runs: int = 0
    failures: int = 0
    failed_seed: int | None = None
    hours: float = 0.0
    first_seed: int = 0
    cores: int = 0


def run_tests(path: str, *options: str, **env: str) -> tuple[bool, str]:
    """(passed, the end of pytest's output)."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=0", path, *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def soak(hours: float, quick: bool, seed: int) -> tuple[Soak, str]:
    """Run rounds until the time is over or one fails; returns the figures and the output of the failure."""
    examples, steps = (QUICK_EXAMPLES, QUICK_STEPS) if quick else (EXAMPLES, STEPS)
    state = Soak(first_seed=seed, steps_each=steps, cores=os.cpu_count() or 0)
    began = time.monotonic()
    selected = ["-k", "TestSite"] if quick else []
    while True:
        now = seed + state.rounds
        env = {"PROMPTTUNER_EXAMPLES": str(examples), "PROMPTTUNER_STEPS": str(steps)}
        passed, output = run_tests(INVARIANTS, f"--hypothesis-seed={now}", *selected, **env)
        state.rounds += 1
        state.examples += examples
        if passed and not quick and state.rounds % SCENARIO_EVERY == 1 and shutil.which("slurmctld"):
            passed, output = run_tests(SCENARIOS)
            state.scenario_runs += 1
        state.hours = round((time.monotonic() - began) / 3600, 4)
        print(f"round {state.rounds}: seed {now}, {'passed' if passed else 'FAILED'}, {state.hours:.2f} h", flush=True)
        if not passed:
            state.failures, state.failed_seed = 1, now
            return state, output
        if quick or state.hours >= hours:
            return state, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    state, output = soak(args.hours, args.quick, args.seed)
    figures = asdict(state)
    if output:
        print(output)
    width = max(len(key) for key in figures)
    for key, value in figures.items():
        print(f"{key.ljust(width)}  {value}")
    if args.json:
        print(json.dumps({"benchmark": "soak", **figures}))
    return 1 if state.failures else 0


if __name__ == "__main__":
    sys.exit(main())
