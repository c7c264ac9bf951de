"""`prompttuner pool` and `prompttuner sbatch` from the command line, on a database without any cluster."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from row_tools import assign, end_leases

from prompttuner.cli.frame.root import run
from prompttuner.config import Settings, load_settings
from prompttuner.db import Store
from prompttuner.db.queries import allocations, jobs, leases
from prompttuner.db.tables.models import Allocation, Job
from prompttuner.files import read_json, write_json
from prompttuner.slurm.limits import Breaker
from prompttuner.slurm.spool import Spool
from prompttuner.smallmodel import tasks
from prompttuner.states import AllocationState


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    found = load_settings()
    found.make_home()
    return found


def hold(settings: Settings, seconds_ago: float) -> None:
    """Two allocations: one warm after a lease of 20 s, one still queued."""
    now = time.time()
    started = now - seconds_ago
    with Store.open(settings.database_url, create=True) as store:
        owner = store.acquire(ttl_s=30)
        job_row = {
            "id": "jaaaaaaaaa", "spec": {}, "pool": "small", "model": "m", "submitted_at": started, "owner": "me",
            "min_gpus": 1, "max_gpus": 1, "priority": 0, "on_miss": "continue",
        }  # fmt: skip
        store.transact(owner, lambda s: jobs.add(s, [job_row], started, "test"))
        rows = [{"uuid": uuid, "pool": "small", "model": "m", "gpus": 2} for uuid in ("aaaa-1", "bbbb-2")]
        store.transact(owner, lambda s: allocations.add(s, rows, started, "test"))
        for state in (AllocationState.STARTING, AllocationState.WARM):
            store.transact(
                owner, lambda s, to=state: allocations.change(s, [allocations.Change("aaaa-1", to, "test")], now - 5)
            )
        facts = {
            "native_id": "77",
            "started_at": started,
            "warm_at": started + 10,
            "ends_at": now + 600,
        }
        store.transact(owner, lambda s: assign(s, Allocation, "aaaa-1", **facts))
        store.transact(owner, lambda s: leases.grant(s, "jaaaaaaaaa", 1, ["aaaa-1"], at=started + 15, cause="test"))
        store.transact(owner, lambda s: end_leases(s, "jaaaaaaaaa", "done", started + 35))
        store.release(owner)


def test_pool_shows_what_is_held_and_what_it_costs(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    hold(settings, seconds_ago=100)
    assert run(["pool", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    warm = next(one for one in shown["allocations"] if one["allocation"] == "aaaa-1")
    assert (warm["native_id"], warm["state"], warm["gpus"]) == ("77", "warm", 2)
    assert warm["idle_since"] is not None
    assert warm["gpu_seconds"] == pytest.approx(200, abs=20)
    assert warm["busy_s"] == pytest.approx(40, abs=0.1)
    assert warm["startup_s"] == pytest.approx(20, abs=0.1)
    assert warm["warm_s"] == pytest.approx(warm["gpu_seconds"] - 60, abs=0.1)
    queued = next(one for one in shown["allocations"] if one["allocation"] == "bbbb-2")
    assert queued["gpu_seconds"] == 0
    assert run(["pool"]) == 0
    assert "aaaa-1" in capsys.readouterr().out


def test_pool_says_why_submissions_pause(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    spool = Spool(settings.spool_dir).ensure()
    breaker = Breaker(threshold=1)
    breaker.failure(time.time(), "QOSMaxSubmitJobPerUserLimit")
    write_json(spool.root / "gate.json", {"breaker": breaker.to_json()})
    breaker.failures = 9
    write_json(spool.root / "gate.json", {"breaker": breaker.to_json()})
    assert run(["pool"]) == 0
    assert "QOSMaxSubmitJobPerUserLimit" in capsys.readouterr().out


def test_pool_without_anything(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool"]) == 0
    assert "no allocations" in capsys.readouterr().out
    assert run(["pool", "drain"]) == 2
    assert run(["pool", "release", "nothing-like-it"]) == 4


def test_script_becomes_a_held_job_with_sbatchs_answers(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks.write_dataset("reverse+upper", tmp_path / "data", train=32, evaluation=8)
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH -J from-script\n#SBATCH --gres=gpu:1 --time=60\n"
        "#PROMPTTUNER --model=small --train=data/train.jsonl --eval=data/eval.jsonl --target='loss<=0.5' --seed=3\n"
        "module load cuda\n"
    )
    assert run(["sbatch", "-H", str(script)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Submitted batch job j")
    assert "--time is left out" in said.err
    assert run(["sbatch", "--hold", "--parsable", str(script)]) == 0
    job = capsys.readouterr().out.strip()
    with Store.open(settings.database_url, read_only=True) as store:
        row = store.query(lambda session: session.get_one(Job, job))
        assert (row.name, row.state, row.spec["seed"], row.spec["setup"]) == (
            "from-script",
            "held",
            3,
            ["module load cuda"],
        )
    frozen = read_json(settings.spool_dir / "jobs" / job / "spec.json")
    assert frozen is None or frozen["max_gpus"] == 1
    script.write_text(script.read_text() + "python train.py\n")
    assert run(["sbatch", str(script)]) == 2
    assert "line 6" in capsys.readouterr().err
    assert run(["sbatch", str(tmp_path / "missing.sh")]) == 3
