"""A user of the throw-away cluster: settings, a controller that can be killed, jobs, and what became of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lingering import release
from slurm_cluster import Cluster

from prompttuner import JobSpec, state, submit
from prompttuner.config import Settings, load_settings
from prompttuner.db.store.failures import NoDatabase
from prompttuner.errors import NotFound
from prompttuner.smallmodel import tasks
from prompttuner.states import JOB_ENDED

__all__ = ["SlurmUser"]

PATIENCE_S = 400.0
"""For one thing to happen; CI machines are slow and noisy."""
MODEL = Path(tasks.__file__).parent / "model"


class SlurmUser:
    """One user's home on the cluster. ``stop`` (or the fixture) ends the controller; jobs are the cluster's affair."""

    def __init__(self, cluster: Cluster, home: Path, **settings: Any) -> None:
        self.cluster, self.home = cluster, home
        flags = {
            "home": str(home), "backend": "slurm", "policy": "edf", "tick_s": 0.5, "poll_s": 0.2, "heartbeat_s": 1,
            "squeue_min_s": 0.5, "suspect_s": 30, "idle_limit_s": 300, "max_gpus": 2,
            "elastic.checkpoint_steps": 20, "elastic.interface": "lo", "slurm.partition": "gpu",
            "slurm.walltime_s": 1800,
            **settings,
        }  # fmt: skip
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.settings: Settings = load_settings(flags, cwd=home)
        self.flags = [f"--set={key}={_toml(value)}" for key, value in flags.items() if key != "home"]
        self._controller: subprocess.Popen[bytes] | None = None
        self.program = [sys.executable, "-c", "from prompttuner.cli import main; main()"]

    # -- the controller ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start `prompttuner run`."""
        with (self.home / "controller.log").open("ab") as log:
            self._controller = subprocess.Popen(
                [*self.program, f"--home={self.home}", *self.flags, "run", "--wait=30"],
                env=self.cluster.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL the controller."""
        assert self._controller is not None
        self._controller.send_signal(signal.SIGKILL)
        self._controller.wait()
        self._controller = None

    def stop(self) -> None:
        if self._controller is not None:
            self._controller.terminate()
            try:
                self._controller.wait(30)
            except subprocess.TimeoutExpired:
                self._controller.kill()
                self._controller.wait()
            self._controller = None

    def cli(self, *words: str) -> str:
        """What a command prints, as the user types it; it must succeed."""
        from prompttuner.cli.frame.root import run

        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = run([f"--home={self.home}", *self.flags, *words])
        assert code == 0, f"{words}: {code}\n{said.getvalue()}"
        return said.getvalue()

    # -- jobs -------------------------------------------------------------------------------------------------

    def another_model(self) -> Path:
        """A second LLM: the small one under another name."""
        folder = self.home / "models" / "second"
        if not folder.exists():
            shutil.copytree(MODEL, folder)
        return folder

    def submit(self, name: str, iterations: int = 60, model: str | Path = "small", **fields: Any) -> str:
        """A job that ends after exactly so many iterations: its target is out of reach."""
        train, evaluation = tasks.write_dataset("reverse+upper", self.home / "data", train=128, evaluation=16)
        spec = JobSpec(
            **{"name": name, "model": str(model), "train": train, "eval": evaluation, "target": "loss<=0.000001",
               "max_gpus": 1, "initial_prompt": "text:reverse , upper case", "batch_size": 8,
               "max_iterations": iterations, "eval_every": 20, **fields}
        )  # fmt: skip
        return submit(spec, settings=self.settings)

    def submit_paced(self, name: str, iterations: int, step_s: float, **fields: Any) -> str:
        """A job that sleeps instead of computing: its length does not depend on the machine."""
        from prompttuner.controller.requests import leave, new_job_id
        from prompttuner.protocol.requests import NewJob, Submit
        from prompttuner.protocol.spec import PacedSpec
        from prompttuner.spec import make_spec, resolve

        train, evaluation = tasks.write_dataset("reverse+upper", self.home / "data", train=128, evaluation=16)
        values = {"name": name, "model": "small", "train": str(train), "eval": str(evaluation), "max_gpus": 1,
                  "target": "loss<=0.5", "max_iterations": 100_000, **fields}  # fmt: skip
        spec = resolve(make_spec(values), time.time())
        paced = PacedSpec(step_s=step_s, speedup=(1.0, 1.0), iterations=iterations)
        job = new_job_id()
        leave(self.settings, Submit(jobs=(NewJob(job=job, spec=replace(spec, paced=paced)),)))
        return job

    def hurry(self, job: str) -> None:
        """Where agents linger: nothing more is to happen to this job."""
        release(self.settings.spool_dir / "jobs" / job)

    def state(self, job: str) -> dict[str, Any]:
        try:
            return state(job, self.settings)
        except (NotFound, NoDatabase):
            return {"state": "requested", "step": 0, "members": 0}

    def unfinished(self, jobs: list[str]) -> int:
        """How many of these have not ended: one query, however many they are."""
        from sqlalchemy import select

        from prompttuner.db import Store
        from prompttuner.db.tables.models import Job

        with Store.open(self.settings.database_url, read_only=True) as store, store.read() as session:
            ended = set(session.scalars(select(Job.id).where(Job.state.in_(JOB_ENDED))))
        return len(set(jobs) - ended)

    def wait(self, *jobs: str) -> list[dict[str, Any]]:
        """Until all have ended."""
        self.until(lambda: all(self.state(job)["state"] in JOB_ENDED for job in jobs), f"{jobs} have ended")
        return [self.state(job) for job in jobs]

    def wait_step(self, job: str, step: int) -> None:
        """Until a running job has come so far (its progress files are read, so that nobody has to tick)."""

        self.until(lambda: self.step(job) >= step, f"{job} at step {step}")

    def step(self, job: str, members: int | None = None) -> int:
        """The newest step that a member of the job has told (where that many were members)."""
        files = (self.settings.spool_dir / "jobs" / job).glob("g*/*/progress.json")
        told = [told for path in files if (told := _read(path)) and members in {None, told.get("members")}]
        return max((progress.get("step", 0) for progress in told), default=0)

    def until(self, condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, f"not after {patience_s:.0f} s: {what}\n{self.report()}"
            time.sleep(0.2)

    # -- what became of them ----------------------------------------------------------------------------------

    def result(self, job: str) -> bytes:
        """The tuned prompt, promoted."""
        return (self.settings.spool_dir / "jobs" / job / "result" / "adapter_model.safetensors").read_bytes()

    def loss(self, job: str) -> float:
        """Loss of the tuned prompt on the evaluation data."""
        return float(_read(self.settings.spool_dir / "jobs" / job / "result" / "result.json")["loss"])

    def queue(self) -> list[str]:
        """Names of our allocations that Slurm still holds."""
        names = self.cluster.run("squeue", "-h", "-o", "%j").split()
        return [name for name in names if name.startswith("pt-")]

    def accounted(self) -> dict[str, list[str]]:
        """Our allocations in Slurm's accounting: uuid -> states of all Slurm jobs of that name."""
        uuids = {path.name for path in (self.settings.spool_dir / "agents").iterdir()}
        rows = self.cluster.run("sacct", "-nXP", "--duplicates", "-S", "now-1day", "-o", "jobname,state").splitlines()
        found: dict[str, list[str]] = {}
        for row in rows:
            name, _, word = row.partition("|")
            if name.removeprefix("pt-") in uuids:
                found.setdefault(name.removeprefix("pt-"), []).append(word)
        return found

    def held(self) -> dict[str, tuple[str | None, float]]:
        """Ended allocations that Slurm knows: Slurm's id -> (who says when it ended, GPU-seconds charged)."""
        from prompttuner.db import Store
        from prompttuner.db.queries import allocations

        with Store.open(self.settings.database_url, read_only=True) as store, store.read() as session:
            rows = [row for row in allocations.find(session) if row.ended_at is not None and row.native_id is not None]
        return {
            row.native_id: (
                row.end_source,
                0.0 if row.started_at is None else (row.ended_at - row.started_at) * row.gpus,
            )
            for row in rows
        }

    def elapsed(self) -> dict[str, float]:
        """GPU-seconds of all ended jobs of this cluster in Slurm's accounting, by id (one GPU each)."""
        rows = self.cluster.run("sacct", "-nXP", "-S", "now-1day", "-o", "jobid,elapsedraw,end").splitlines()
        fields = [row.split("|") for row in rows]
        return {number: float(seconds) for number, seconds, end in fields if end != "Unknown"}

    def check_times(self) -> None:
        """What ended allocations are charged is what Slurm charges, within two seconds; ticks until both know."""
        wrong: dict[str, tuple[object, ...]] = {}

        def agree() -> bool:
            wrong.clear()
            elapsed = self.elapsed()
            for native, (source, seconds) in self.held().items():
                if source != "manager" or native not in elapsed or abs(seconds - elapsed[native]) > 2.0:
                    wrong[native] = (source, seconds, elapsed.get(native))
            if wrong:
                self.cli("tick")
            return not wrong

        with contextlib.suppress(NoDatabase):
            self.until(agree, "Slurm's GPU-seconds and ours are the same", 60.0)

    def journals(self) -> dict[str, list[dict[str, Any]]]:
        """Events that each agent wrote, by allocation."""
        found = {}
        for path in (self.settings.spool_dir / "agents").glob("*/journal.jsonl"):
            found[path.parent.name] = [json.loads(line) for line in path.read_text().splitlines()]
        return found

    def events(self) -> list[tuple[str, str]]:
        """(kind, cause) of all events in the database."""
        from prompttuner.db import Store
        from prompttuner.db.queries import events

        with Store.open(self.settings.database_url, read_only=True) as store, store.read() as session:
            return [(row.kind, row.cause) for row in events.read_after(session, 0)]

    def report(self) -> str:
        """What helps to understand a failure."""
        log = self.home / "controller.log"
        parts = [self.cluster.run("squeue", "-o", "%i %j %T %r %N", check=False)]
        parts += [log.read_text(errors="replace")[-3000:]] if log.exists() else []
        for path in (self.settings.spool_dir / "agents").glob("*/log.txt"):
            parts.append(f"--- {path.parent.name}\n" + path.read_text(errors="replace")[-800:])
        return "\n".join(parts)


def using(cluster: Cluster, home: Path, **settings: Any) -> Iterator[SlurmUser]:
    """A user whose controller is ended afterwards."""
    user = SlurmUser(cluster, home, **settings)
    try:
        yield user
    finally:
        user.stop()


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _toml(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, os.PathLike) else json.dumps(str(value))
