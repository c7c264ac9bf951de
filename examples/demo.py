"""The main job, for real: six prompt-tuning jobs of six related tasks, tuned by their deadlines on this machine.

Everything is as in earnest: the shipped small model, the command line's own functions, SQLite, agents as processes
started through submitit, a Prompt Bank that grows as jobs end. Exit code 0 only if every job reached its target,
which its initial prompt had not.

    python examples/demo.py [--home DIR] [--keep]
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompttuner import JobSpec, submit
from prompttuner.config import Settings, load_settings
from prompttuner.controller.resources import State
from prompttuner.controller.run import run_until_done
from prompttuner.controller.tick_report import TickReport
from prompttuner.db import Store
from prompttuner.db.queries import events, jobs
from prompttuner.db.tables.models import Job
from prompttuner.smallmodel import tasks
from prompttuner.spec.when import format_duration
from prompttuner.states import JobState
from prompttuner.words import Counted


@dataclass(frozen=True)
class Plan:
    """One job of the demo. Those with ``auto`` start from what the bank has learnt from the others."""

    name: str
    task: str
    initial: str
    deadline: str
    seed: int = 0


PLANS = (
    Plan("reverse-a", "reverse+upper", "text:reverse the letters then write in capitals :", "90s"),
    Plan("drop-a", "drop_last+upper", "vocab", "90s"),
    Plan("rotate-a", "rotate_left+upper", "vocab", "120s"),
    Plan("reverse-b", "reverse+next2", "auto", "150s", seed=1),
    Plan("drop-b", "drop_last+previous2", "auto", "160s", seed=1),
    Plan("rotate-b", "rotate_left+previous", "auto", "170s", seed=1),
)


def submit_all(settings: Settings, plans: Sequence[Plan]) -> dict[str, Plan]:
    """Write each task's data and submit its job; returns the plans by job id."""
    ids = {}
    for plan in plans:
        train, evaluation = tasks.write_dataset(plan.task, settings.home / "data" / plan.task, train=512, evaluation=64)
        spec = JobSpec(
            name=plan.name,
            model="small",
            train=train,
            eval=evaluation,
            target="loss<=0.3",
            deadline=plan.deadline,
            initial_prompt=plan.initial,
            prompt_length=None if plan.initial.startswith("text:") else 12,
            learning_rate=0.02,
            batch_size=16,
            max_iterations=400,
            eval_every=5,
            max_gpus=2,
            seed=plan.seed,
            note=plan.task,
        )
        ids[submit(spec, settings=settings)] = plan
    return ids


class Progress:
    """Prints what happens, and now and then where each running job stands."""

    def __init__(self, names: dict[str, Plan]) -> None:
        self._names = names
        self._seq = 0
        self._said = 0.0
        self._start = time.monotonic()

    def __call__(self, state: State, _report: TickReport) -> None:
        """Print what is new after a tick."""
        for event in state.query(lambda session: events.read_after(session, self._seq)):
            self._seq = event.seq
            if event.kind.startswith("job.") or event.kind in {"members", "lookup"}:
                plan = self._names.get(event.job_id or "")
                self._say(f"{plan.name if plan else '':10} {event.kind:14} {event.cause}")
        if time.monotonic() - self._said > 5:
            self._said = time.monotonic()
            running = [row for row in state.query(jobs.load_active) if row.state == JobState.RUNNING]
            for row in running:
                metric = "" if row.metric is None else f"loss {row.metric:.3f}, "
                self._say(f"{row.name:10} step {row.step:4}     {metric}{Counted(len(row.members), 'worker')}")

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._start:6.1f} s  {text}", flush=True)


def show(settings: Settings, plans: dict[str, Plan]) -> bool:
    """Print the final table; True if every job reached its target and none had reached it at step 0."""
    from rich.console import Console
    from rich.table import Table

    columns = ("job", "task", "initial prompt", "iterations", "workers over time", "deadline", "finished", "SLO met")
    table = Table(*columns, title="prompttuner demo")
    good = True
    with Store.open(settings.database_url, read_only=True) as store, store.read() as session:
        for job_id, plan in plans.items():
            job = jobs.get(session, job_id)
            reached = job.state == JobState.DONE and bool(job.ita) and not _at_start(settings, job)
            good = good and reached
            table.add_row(*_row(job, plan, reached))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return good


def _at_start(settings: Settings, job: Job) -> bool:
    """Whether the metric already met the target at step 0."""
    with (settings.spool_dir / "jobs" / job.id / "result" / "history.csv").open() as handle:
        first = next(csv.DictReader(handle))
    return int(first["step"]) == 0 and float(first["metric"]) <= float(job.spec["target"]["value"])


def _row(job: Job, plan: Plan, reached: bool) -> list[str]:
    start = job.history[0][0] if job.history else job.submitted_at
    workers = " ".join(f"{at - start:.0f}s:{int(n)}" for at, n in job.history)
    took: Any = None if job.finished_at is None else job.finished_at - job.submitted_at
    met = took is not None and job.deadline_at is not None and job.finished_at is not None
    met = met and reached and job.finished_at <= job.deadline_at
    return [
        job.name,
        plan.task,
        (job.initial_prompt or plan.initial)[:36],
        str(job.ita if reached else f"{job.step} ({job.state})"),
        workers,
        plan.deadline,
        "-" if took is None else format_duration(took),
        "yes" if met else "no",
    ]


def run(settings: Settings, plans: Sequence[Plan] = PLANS) -> int:
    """Submit, be the controller until all is done, show the table. Returns the exit code."""
    ids = submit_all(settings, plans)
    print(f"{len(ids)} jobs submitted; backend {settings.backend}, home {settings.home}", flush=True)
    run_until_done(settings, Progress(ids))
    good = show(settings, ids)
    print("every job reached its target" if good else "NOT every job reached its target", flush=True)
    return 0 if good else 1


def main() -> int:
    """Run the demo from the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".demo"), help="where everything of the demo is kept")
    parser.add_argument("--keep", action="store_true", help="go on with an earlier demo's home (its bank is warm)")
    arguments = parser.parse_args()
    home = arguments.home.absolute()
    if not arguments.keep:
        shutil.rmtree(home, ignore_errors=True)
    settings = load_settings(
        {"home": str(home), "tick_s": 0.25, "poll_s": 0.1, "idle_limit_s": 60, "policy": "prompttuner"}
    )
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
