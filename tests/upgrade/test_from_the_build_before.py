"""A site is upgraded while it works: what the build before has begun goes on under this one, and nothing is lost."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BUILD_BEFORE = "e67fd2e9e9908ab663d909aa7342422dce9a6fe3"
"""The last commit before modules were moved and contracts typed (version 0.1.0, schema 0002)."""
PATIENCE_S = 240.0
QUICK_STEPS = 8
"""A generation of the build before does so many steps at full speed; then it lingers until the test lets it go on."""
ENTRY = "from prompttuner.cli import main; main()"
JOB = """
name = "{name}"
model = "small"
train = "train.jsonl"
eval = "eval.jsonl"
target = "loss<=0.001"
deadline = "30m"
initial_prompt = "vocab"
prompt_length = 8
batch_size = 8
max_iterations = 30
eval_every = 10
max_gpus = 1
"""


class Site:
    """A home with one slot, and an installation that is replaced under the feet of what runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before = folder / "before"
        self.current = folder / "current"
        _unpack(BUILD_BEFORE, self.before)
        self.current.symlink_to(self.before)
        self.home = folder / "home"
        self.daemons: list[subprocess.Popen[bytes]] = []

    def environment(self) -> dict[str, str]:
        lingering = self.before / "tests" / "support" / "lingering_site"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PROMPTTUNER_")}
        return kept | {
            "PYTHONPATH": f"{self.current}:{lingering}",
            "PROMPTTUNER_TEST_LINGER": str(QUICK_STEPS),
            "PROMPTTUNER_HOME": str(self.home),
            "PROMPTTUNER_LOCAL__SLOTS": "1",
            "PROMPTTUNER_IDLE_LIMIT_S": "300",
            "OMP_NUM_THREADS": "1",
        }

    def replace_installation(self) -> None:
        """As ``pip install --upgrade`` does: the same place holds other modules from now on."""
        link = self.folder / "next"
        link.symlink_to(ROOT)
        link.replace(self.current)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", ENTRY, *words],
            env=self.environment(), cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def ask(self, *words: str) -> Any:
        done = self.command(*words, "--json")
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return json.loads(done.stdout)

    def start_controller(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / "controller.log").open("ab") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-c", ENTRY, "run", *words], env=self.environment(), cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.daemons.append(daemon)
        return daemon

    def submit(self, name: str) -> str:
        (self.folder / f"{name}.toml").write_text(JOB.format(name=name))
        return str(self.ask("submit", f"{name}.toml")[0]["job"])

    def job(self, job: str) -> dict[str, Any]:
        found = self.ask("show", job)
        return dict(found.get("job", found))

    def job_dir(self, job: str) -> Path:
        return self.home / "spool" / "jobs" / job

    def step(self, job: str) -> int:
        """The furthest step that any member of the job tells of."""
        return max((_read(path).get("step") or 0 for path in self.job_dir(job).glob("g*/*/progress.json")), default=0)

    def agents(self) -> list[Path]:
        return sorted((self.home / "spool" / "agents").iterdir())

    def log(self) -> str:
        return (self.folder / "controller.log").read_text()


def _unpack(commit: str, folder: Path) -> None:
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"the build before cannot be had without the repository's history: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def until(condition: Callable[[], Any], what: str, site: Site) -> Any:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what}; the controllers' log:\n{site.log()[-3000:]}")


def zygotes_of(agent: int) -> list[int]:
    """Processes that an agent has started as its zygote."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if parent == agent and b"prompttuner.tuning.zygote" in words:
            found.append(int(folder.name))
    return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    from prompttuner.smallmodel import tasks

    train, evaluation = tasks.write_dataset("reverse+upper", tmp_path / "data", train=64, evaluation=8)
    train.rename(tmp_path / "train.jsonl")
    evaluation.rename(tmp_path / "eval.jsonl")
    yield site
    for daemon in site.daemons:
        daemon.kill()
        daemon.wait()
    for agent in site.agents():
        pid = _read(agent / "instance.json").get("pid")
        if pid and not (agent / "exit.json").exists():
            os.kill(int(pid), signal.SIGKILL)


def test_jobs_agents_and_pickles_of_the_build_before_go_on_under_this_one(site: Site) -> None:
    first = site.submit("first")
    before = site.start_controller()
    second = site.submit("second")
    until(lambda: site.step(first) > QUICK_STEPS, "the first job to be in its lingering steps", site)
    before.terminate()
    before.wait(timeout=PATIENCE_S)
    (agent,) = site.agents()
    pid = int(_read(agent / "instance.json")["pid"])

    site.replace_installation()
    upgraded = site.command("db", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    assert {row["name"]: row["state"] for row in site.ask("status")["jobs"]} == {"first": "running", "second": "queued"}

    after = site.start_controller("--until-done")
    (site.job_dir(first) / "hurry").touch()
    until(lambda: site.job(first)["finished_at"], "the first job to end", site)
    assert site.agents() == [agent], "the running job, its lease and its agent have lived through the upgrade"

    until(lambda: site.step(second) > QUICK_STEPS, "the second job to run on the agent of the build before", site)
    (zygote,) = zygotes_of(pid)
    os.kill(zygote, signal.SIGKILL)
    until(lambda: zygotes_of(pid) not in ([], [zygote]), "the old agent to start its zygote by the former name", site)
    (site.job_dir(second) / "hurry").touch()
    assert after.wait(timeout=PATIENCE_S) == 0, site.log()[-3000:]

    for job in (first, second):
        told = site.job(job)
        assert (told["state"], told["step"]) == ("exhausted", 30), told
        assert (site.job_dir(job) / "result" / "adapter_model.safetensors").is_file()
    assert site.agents() == [agent]
    assert site.command("db", "check").returncode == 0

    pickles = list(site.home.rglob("*_submitted.pkl"))
    assert pickles
    load = "import sys; from submitit.core.utils import DelayedSubmission as D; print(D.load(sys.argv[1]).function)"
    for pickle in pickles:
        done = subprocess.run(
            [sys.executable, "-c", load, str(pickle)],
            env=site.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert "function main" in done.stdout
