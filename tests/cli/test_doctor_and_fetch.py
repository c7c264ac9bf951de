"""``doctor`` and ``fetch``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from cli_calls import Cli
from lab import DEAD_PID

from prompttuner import smallmodel
from prompttuner.cli.doctor import checks
from prompttuner.db import OwnerInfo, Store


def verdicts(cli: Cli, *flags: str) -> dict[str, str]:
    return {one["what"]: one["verdict"] for one in cli(*flags, "doctor", "--json").json["findings"]}


def test_a_new_installation_is_well(cli: Cli, home: Path) -> None:
    done = cli("doctor")
    assert done.code == 0
    assert "All is well" in done.out
    assert not home.exists()


def test_a_state_without_a_controller_is_advised(cli: Cli, held: str) -> None:
    assert verdicts(cli)["controller"] == "advice"


@pytest.mark.parametrize(
    ("pid", "machine", "ttl_s", "verdict"),
    [(os.getpid(), None, 600.0, "ok"), (DEAD_PID, None, 600.0, "advice"), (1, "elsewhere", 0.0, "advice")],
    ids=["alive", "dead", "silent"],
)
def test_a_controller_that_was_killed_or_is_silent_is_advised(
    cli: Cli, held: str, home: Path, pid: int, machine: str | None, ttl_s: float, verdict: str
) -> None:
    here = OwnerInfo.of_this_process("prompttuner")
    info = OwnerInfo(here.host, pid, here.command, machine or here.machine, here.pid_start)
    with Store.open(home / "state.db") as store:
        store.acquire(info, ttl_s=ttl_s)
    assert verdicts(cli)["controller"] == verdict


def test_what_cannot_work_is_named_and_exits_with_1(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdicts(cli, "--set", "cron_tick_s=10m")["intervals"] == "WRONG"
    unknown = cli("--set", "policy=nosuch", "doctor")
    assert (unknown.code, "nosuch" in unknown.err) == (2, True), "refused when settings are read"
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    assert verdicts(cli)["home"] == "WRONG"
    monkeypatch.setenv("PATH", "/nowhere")
    assert verdicts(cli, "--backend", "slurm")["backend"] == "WRONG"
    assert cli("doctor").code == 1


def test_a_disk_that_takes_nothing_is_wrong(cli: Cli, held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage(".")
    for free, verdict in ((1 << 40, "ok"), (1 << 28, "advice"), (1 << 20, "WRONG")):
        monkeypatch.setattr("shutil.disk_usage", lambda _place, free=free: real._replace(free=free))
        assert verdicts(cli)["spool"] == verdict
    monkeypatch.setattr("shutil.disk_usage", lambda _place: real._replace(free=1 << 40))
    monkeypatch.setattr("os.access", lambda *_: False)  # as on a file system that is mounted read-only
    done = cli("doctor")
    assert (done.code, "cannot be written" in done.out) == (1, True)


def test_a_readable_file_with_a_password_is_wrong(cli: Cli, home: Path) -> None:
    home.mkdir(mode=0o700)
    config = home / "config.toml"
    config.write_text('database = "postgresql://me:hush@127.0.0.1:1/x"\n')
    config.chmod(0o644)
    assert verdicts(cli)["secrets"] == "WRONG"
    config.chmod(0o600)
    assert "secrets" not in verdicts(cli)


def test_a_check_that_breaks_does_not_hide_the_others(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_settings: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(checks, "CHECKS", [broken, checks.policy])
    monkeypatch.setattr("prompttuner.cli.doctor.doctor.CHECKS", checks.CHECKS)
    assert verdicts(cli) == {"broken": "WRONG", "policy": "ok"}


def test_fetch_asks_the_hub_for_weights_without_pickles(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(model: str, *, allow_patterns: list[str], local_dir: str, **_: object) -> str:
        asked.append(allow_patterns)
        shutil.copytree(smallmodel.path(), local_dir)
        return local_dir

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    done = cli("fetch", "some/model", "--to", tmp_path / "m", "--json")
    assert done.code == 0
    assert done.json["folder"] == str(tmp_path / "m")
    assert len(asked) == 1
    assert not any(pattern.endswith(".bin") for pattern in asked[0])


def test_a_fetch_without_internet_says_what_to_do(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    done = cli("fetch", "some/model")
    assert done.code == 8
    assert "no route to host" in done.err
    assert "copy its folder" in done.err


def test_fetch_of_a_folder_checks_it(cli: Cli, tmp_path: Path) -> None:
    assert cli("fetch", "small").code == 0
    (tmp_path / "empty").mkdir()
    assert cli("fetch", tmp_path / "empty").code == 8
