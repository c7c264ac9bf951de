"""The main job, for real: prompt-tuning jobs of related tasks, tuned by their deadlines on this machine.

Everything is as in earnest: the shipped small model, the command line's own functions, SQLite, agents as processes
started through submitit, a Prompt Bank that grows as jobs end. A long job grows while it runs; when an urgent job
comes in, it gives a worker back. Exit code 0 only if every job reached its target, which its initial
prompt had not, by its deadline, and the long job grew and shrank while it ran.

    python examples/demo.py [--home DIR] [--keep] [--picture FILE.svg]
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from prompttuner import JobSpec
from prompttuner.client.client import Client
from prompttuner.config import Settings, load_settings
from prompttuner.controller.resources import State
from prompttuner.controller.run import run_until_done
from prompttuner.controller.tick_report import TickReport
from prompttuner.db import Store
from prompttuner.db.queries import events, jobs
from prompttuner.db.tables.models import Job
from prompttuner.files import write_json
from prompttuner.smallmodel import tasks
from prompttuner.spec import resolve
from prompttuner.spec.when import format_duration
from prompttuner.states import JobState
from prompttuner.words import Counted

LONG, URGENT = "long", "urgent"
GROWN_S = 3.0
"""The urgent job comes in once the long one has had both workers for so long."""


@dataclass(frozen=True)
class Plan:
    """One job of the demo. Those with ``auto`` start from what the bank has learnt from the others."""

    name: str
    task: str
    initial: str
    deadline: str
    seed: int = 0
    learning_rate: float = 0.02


PLANS = (
    Plan("reverse-a", "reverse+upper", "text:reverse the letters then write in capitals :", "60s"),
    Plan("drop-a", "drop_last+upper", "vocab", "60s"),
    Plan(LONG, "rotate_left+upper", "vocab", "150s", learning_rate=0.003),
    Plan("reverse-b", "reverse+next2", "auto", "90s", seed=1),
)
LATER = Plan(URGENT, "drop_last+previous2", "auto", "45s", seed=1)
"""Comes in while the long job runs on both workers."""


def submit(settings: Settings, plans: Sequence[Plan]) -> dict[str, Plan]:
    """Write each task's data, check all jobs together and submit them as one request; returns the plans by job id."""
    client = Client(settings)
    now = time.time()
    specs = [resolve(spec_of(settings, plan), now) for plan in plans]
    client.check([*specs, resolve(spec_of(settings, LATER), now)])  # the answers are remembered: the urgent one gains
    now = time.time()  # deadlines count from here
    return dict(zip(client.submit([resolve(spec_of(settings, plan), now) for plan in plans]), plans, strict=True))


def spec_of(settings: Settings, plan: Plan) -> JobSpec:
    """The job spec of a plan, with its data written."""
    train, evaluation = tasks.write_dataset(plan.task, settings.home / "data" / plan.task, train=512, evaluation=64)
    return JobSpec(
        name=plan.name,
        model="small",
        train=train,
        eval=evaluation,
        target="loss<=0.3",
        deadline=plan.deadline,
        initial_prompt=plan.initial,
        prompt_length=None if plan.initial.startswith("text:") else 12,
        learning_rate=plan.learning_rate,
        batch_size=16,
        max_iterations=1500,
        eval_every=5,
        max_gpus=2,
        seed=plan.seed,
        note=plan.task,
    )


class Progress:
    """Prints what happens, and now and then where each running job stands."""

    def __init__(self, settings: Settings, names: dict[str, Plan]) -> None:
        self._settings = settings
        self._names = names
        self._grown_at: float | None = None
        self._urgent: subprocess.Popen[str] | None = None
        self._seq = 0
        self._said = 0.0
        self._start = time.monotonic()

    def __call__(self, state: State, _report: TickReport) -> None:
        """Print what is new after a tick."""
        for event in state.query(lambda session: events.read_after(session, self._seq)):
            self._seq = event.seq
            if event.kind.startswith("job.") or event.kind in {"members", "lookup"}:
                plan = self._names.get(event.job_id or "", LATER)  # the urgent one's id is its command's
                self._say(f"{plan.name:10} {event.kind:14} {event.cause}")
        running = [row for row in state.query(jobs.load_active) if row.state == JobState.RUNNING]
        if self._urgent is None and any(row.name == LONG and len(row.members) > 1 for row in running):
            self._grown_at = self._grown_at or time.monotonic()
            if time.monotonic() - self._grown_at >= GROWN_S:
                self._urgent = self._submit_urgent()
        if time.monotonic() - self._said > 5:
            self._said = time.monotonic()
            for row in running:
                metric = "" if row.metric is None else f"loss {row.metric:.3f}, "
                self._say(f"{row.name:10} step {row.step:4}     {metric}{Counted(len(row.members), 'worker')}")

    def _submit_urgent(self) -> subprocess.Popen[str]:
        """As a user would, while the controller is at work: on the command line."""
        self._say(f"{URGENT:10} comes in: its deadline is {LATER.deadline} away")
        file = self._settings.home / f"{URGENT}.json"
        write_json(file, spec_of(self._settings, LATER).model_dump(mode="json", exclude_unset=True))
        command = [sys.executable, "-c", "from prompttuner.cli import main; main()"]
        return subprocess.Popen([*command, f"--home={self._settings.home}", "submit", str(file), "-q"], text=True)

    def all_plans(self, settings: Settings) -> dict[str, Plan]:
        """The plans by job id, with the urgent one if it came in."""
        if self._urgent is not None:
            self._urgent.wait()
        with Store.open(settings.database_url, read_only=True) as store, store.read() as session:
            rows = jobs.newest(session, 100, list(JobState))
            return self._names | {row.id: LATER for row in reversed(rows) if row.name == URGENT}

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._start:6.1f} s  {text}", flush=True)


def show(settings: Settings, plans: dict[str, Plan]) -> list[str]:
    """Print the final table; returns what did not go as a demo should."""
    from rich.console import Console
    from rich.table import Table

    columns = ("job", "task", "initial prompt", "iterations", "workers over time", "deadline", "finished", "SLO met")
    table = Table(*columns, title="prompttuner demo")
    wrong = []
    with Store.open(settings.database_url, read_only=True) as store, store.read() as session:
        for job_id, plan in plans.items():
            job = jobs.get(session, job_id)
            reached = job.state == JobState.DONE and bool(job.ita) and not _at_start(settings, job)
            row = _row(job, plan, reached)
            table.add_row(*row)
            if not reached:
                wrong.append(f"{plan.name} did not reach its target")
            elif row[-1] != "yes":
                wrong.append(f"{plan.name} reached its target after its deadline")
            if plan.name == LONG and not _resized(job):
                wrong.append(
                    f"{LONG} did not grow and give a worker back: it ended before (or this machine is very busy)"
                )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if LATER.name not in {plan.name for plan in plans.values()}:
        wrong.append(f"{URGENT} never came in: {LONG} never had two workers")
    return wrong


def _resized(job: Job) -> bool:
    """Whether a job got a worker more and gave one back while it ran."""
    steps = [(int(before), int(after)) for (_, before), (_, after) in pairwise(job.history)]
    running = [(before, after) for before, after in steps if before and after]
    return any(after > before for before, after in running) and any(after < before for before, after in running)


def draw(settings: Settings, path: Path) -> None:
    """Write the picture of a run: each job's workers over time, and its deadline."""
    from prompttuner.report.charts import charts_of
    from prompttuner.report.live import from_database
    from prompttuner.report.svg import svg_of

    with Store.open(settings.database_url, read_only=True) as store, store.read() as session:
        charts = dict(charts_of(from_database(session, time.time(), 0.0, "demo")))
    head, title, rest = svg_of(charts["deadlines"]).partition("</title>")
    path.write_text(f'{head}{title}<rect width="100%" height="100%" fill="#fff"/>{rest}\n')
    print(f"the picture is in {path}")


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
    ids = submit(settings, plans)
    print(f"{len(ids)} jobs submitted; backend {settings.backend}, home {settings.home}", flush=True)
    progress = Progress(settings, ids)
    run_until_done(settings, progress)
    wrong = show(settings, progress.all_plans(settings))
    print("\n".join(wrong) or f"every job met its deadline; {LONG} grew and gave a worker back", flush=True)
    return 1 if wrong else 0


def main() -> int:
    """Run the demo from the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".demo"), help="where everything of the demo is kept")
    parser.add_argument("--keep", action="store_true", help="go on with an earlier demo's home (its bank is warm)")
    parser.add_argument("--picture", type=Path, help="write the run as an SVG picture")
    arguments = parser.parse_args()
    home = arguments.home.absolute()
    if not arguments.keep:
        shutil.rmtree(home, ignore_errors=True)
    settings = load_settings(
        {"home": str(home), "tick_s": 0.25, "poll_s": 0.1, "idle_limit_s": 60, "policy": "prompttuner"}
    )
    code = run(settings)
    if arguments.picture is not None:
        draw(settings, arguments.picture)
    return code


if __name__ == "__main__":
    sys.exit(main())
