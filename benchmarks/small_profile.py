"""Measures the profile of the shipped small model from the running system, on a throw-away Slurm cluster.

Five real tuning jobs: a cold start, a warm one, one on two members, one that is scaled while it runs, one of a
second LLM (a switch). A member is one CPU core. The time of a lookup is that of benchmarks/bank.py, whose bank is full.

    python benchmarks/small_profile.py [--quick] [--save] [--json]

``--save`` writes prompttuner/profiles/small.json. Needs the Slurm packages (tests/install_system_packages.sh).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from fidelity_times import first_load, stints_of
from slurm_cluster import missing_programs, running_cluster
from slurm_site import SlurmUser
from sqlalchemy import select
from sqlalchemy.orm import Session

from prompttuner import JobSpec, submit
from prompttuner.controller.requests import leave
from prompttuner.db import Store
from prompttuner.db.queries import profiles as profile_rows
from prompttuner.db.tables.models import Allocation, Job
from prompttuner.protocol.requests import Scale
from prompttuner.smallmodel import tasks

PROFILE = Path(__file__).parents[1] / "prompttuner" / "profiles" / "small.json"
BANK = Path(__file__).parent / "results" / "bank.json"
COMMAND = "python benchmarks/small_profile.py --save"


class Lab:
    """A user on the cluster who submits jobs of the small model one after the other."""

    def __init__(self, user: SlurmUser, steps: int) -> None:
        self.user, self.steps = user, steps
        self.data = tasks.write_dataset("reverse+upper", user.home / "data", train=128, evaluation=16)
        self.jobs: dict[str, str] = {}

    def start(self, name: str, members: int = 1, model: str = "small") -> str:
        """Submit a job that ends after exactly so many iterations: its target is out of reach."""
        train, evaluation = self.data
        spec = JobSpec(
            name=name, model=model, train=train, eval=evaluation, target="loss<=0.000001", min_gpus=members,
            max_gpus=members, initial_prompt="text:reverse , upper case", batch_size=16, max_iterations=self.steps,
            eval_every=self.steps,
        )  # fmt: skip
        self.jobs[name] = submit(spec, settings=self.user.settings)
        return self.jobs[name]

    def all(self) -> None:
        self.user.wait(self.start("cold"))
        self.user.wait(self.start("warm"))
        self.user.wait(self.start("pair", members=2))
        scaled = self.start("scaled")
        self.user.wait_step(scaled, self.steps // 4)
        leave(self.user.settings, Scale(job=scaled, members=2))
        self.user.wait(scaled)
        self.user.wait(self.start("other", model=str(self.user.another_model())))


def measured(session: Session, lab: Lab) -> dict[str, Any]:
    """Times of the profile's fields, those that were seen, and the number of samples of each."""
    spool, poll_s = lab.user.settings.spool_dir, lab.user.settings.poll_s
    jobs = {name: session.get_one(Job, ident) for name, ident in lab.jobs.items()}
    found: dict[str, list[float]] = {
        name: [] for name in ("queue_s", "start_s", "warm_s", "resize_s", "switch_s", "lookup_s")
    }
    for row in session.scalars(select(Allocation).where(Allocation.started_at.is_not(None))):
        submitted = (row.submitted_at or 0.0) + poll_s
        found["queue_s"].append(max(0.0, (row.started_at or 0.0) - submitted))
        loaded = first_load(spool / "agents" / row.uuid)[1]
        if loaded is not None:
            found["start_s"].append(loaded - submitted - found["queue_s"][-1])
    for row in profile_rows.load_startups(session):
        if row.kind == "switch":
            found["switch_s"].append(row.seconds)
    pauses: list[float] = []
    for name, job in jobs.items():
        stints = stints_of(session, job, spool)
        if name in {"warm", "pair"}:
            found["warm_s"].append(max(0.0, stints[0].first_at - stints[0].granted_at - poll_s))
        pauses += [after.first_at - one.end_at for one, after in pairwise(stints)]
    found["lookup_s"].append(float(json.loads(BANK.read_text())["lookup_cpu_s"]))
    rates = {row.members: row.iters_per_s for row in profile_rows.load_speeds(session) if row.pool == jobs["pair"].pool}
    found["resize_s"] = [max(0.0, pause - 1.0 / rates[1]) for pause in pauses]  # journals tell when a step begins
    return {
        "times": {name: round(median(values), 3) for name, values in found.items() if values},
        "samples": {name: len(values) for name, values in found.items()},
        "step_s": round(1.0 / rates[1], 4),
        "gain_of_two": round(rates[2] / rates[1], 3),
    }


def profile_of(found: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The profile file: measured fields, the others as they were, named in ``origin``."""
    kept = [name for name, count in found["samples"].items() if not count]
    origin = (
        f"measured: {COMMAND} (real Slurm, agents and jobs of batch size 16, one CPU core a member, {os.cpu_count()} "
        f"cores, load {os.getloadavg()[0]:.1f} at its end), lookup_s by benchmarks/bank.py; the speed-up is "
        f"stated: two members that shared these cores with the controller gained {found['gain_of_two']:.2f}, which "
        "says nothing of nodes of their own"
    )
    if kept:
        origin += f"; not seen there and left as they were: {', '.join(kept)}"
    return {**before, "step_s": found["step_s"], **found["times"], "origin": origin}


def run(quick: bool) -> dict[str, Any]:
    """Start the cluster, let the jobs run, read what they took."""
    with tempfile.TemporaryDirectory(prefix="ptprof-") as name, running_cluster(nodes=2, gpus=1) as cluster:
        user = SlurmUser(
            cluster,
            Path(name) / "home",
            policy="prompttuner",
            max_gpus=2,
            poll_s=0.2,
            tick_s=1.0,
            checkpoint_every_steps=50,
        )
        os.environ["SLURM_CONF"] = cluster.env["SLURM_CONF"]  # a submission may tick here, too
        user.start()
        try:
            lab = Lab(user, 80 if quick else 300)
            lab.all()
        finally:
            user.stop()
            cluster.run("scancel", "-u", cluster.shape.user, check=False)
        with Store.open(user.settings.database_url, read_only=True) as store, store.read() as session:
            found = measured(session, lab)
    return {
        "benchmark": "small_profile",
        "command": "python benchmarks/small_profile.py" + " --quick" * quick + " --json",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        **found,
        "profile": profile_of(found, json.loads(PROFILE.read_text())),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter jobs")
    parser.add_argument("--save", action="store_true", help="write the profile that the package ships")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    if missing := missing_programs():
        print(f"no Slurm on this host: {', '.join(missing)} not found", file=sys.stderr)
        return 2
    out = run(args.quick)
    for name, value in {"step_s": out["step_s"], "gain of two": out["gain_of_two"], **out["times"]}.items():
        print(f"{name:12}{value:10.3f}   samples {out['samples'].get(name, '')}")
    if args.save:
        PROFILE.write_text(json.dumps(out["profile"], indent=2) + "\n")
    if args.json:
        print(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
