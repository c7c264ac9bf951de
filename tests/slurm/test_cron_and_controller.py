"""Ways to run ticks without a daemon: lines for cron, and the controller as a Slurm job."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Cluster

from prompttuner.cli.frame.root import run
from prompttuner.cli.running.render import controller_job, own_command
from prompttuner.config import load_settings
from prompttuner.db import OwnerInfo, Store


@pytest.fixture
def crontab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A crontab command that keeps its table in a file, as cron's own does."""
    table, program = tmp_path / "table", tmp_path / "bin" / "crontab"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = -l ]; then \n'
        f'[ -f {table} ] || {{ echo "no crontab for me" >&2; exit 1; }}\ncat {table}\n'
        f"else cat > {table}.new; mv {table}.new {table}; fi\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path / "my home 100%"))
    monkeypatch.chdir(tmp_path)
    return table


def test_line_is_added_once_shown_and_removed_among_others(crontab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crontab.write_text("0 5 * * * backup\n")
    assert run(["cron", "show", "--with=crontab"]) == 3
    assert run(["cron", "install", "--with=crontab"]) == 0
    assert run(["--set", "cron_tick_s=120", "cron", "install", "--with=crontab"]) == 0
    lines = crontab.read_text().splitlines()
    assert lines[0] == "0 5 * * * backup"
    ticks = [line for line in lines if line.endswith(" tick")]
    assert len(ticks) == 1
    assert ticks[0].startswith("*/2 * * * * ") and " PROMPTTUNER_HOME='" in ticks[0]
    assert "100\\%" in ticks[0]
    capsys.readouterr()
    assert run(["cron", "show", "--with=crontab"]) == 0
    assert capsys.readouterr().out.splitlines() == ticks
    assert run(["cron", "remove", "--with=crontab"]) == 0
    assert crontab.read_text() == "0 5 * * * backup\n"
    assert run(["cron", "remove", "--with=crontab"]) == 3


def test_first_line_of_an_empty_table(crontab: Path) -> None:
    assert run(["cron", "install", "--with=crontab"]) == 0
    assert " tick\n" in crontab.read_text()


def test_marks_that_somebody_has_torn_apart_take_no_foreign_line_along(crontab: Path, tmp_path: Path) -> None:
    begin, end = (f"# prompttuner: {word} {tmp_path / 'my home 100%'}" for word in ("begin", "end"))
    foreign = ["0 5 * * * backup", "0 6 * * * more", "0 7 * * * even more"]
    crontab.write_text(
        "\n".join([end, foreign[0], begin, foreign[1], begin, "* * * * * x tick", end, foreign[2]]) + "\n"
    )
    assert run(["cron", "install", "--with=crontab"]) == 0
    lines = crontab.read_text().splitlines()
    assert lines[:3] == foreign and len(lines) == 6
    assert run(["cron", "remove", "--with=crontab"]) == 0
    assert crontab.read_text().splitlines() == foreign
    crontab.write_text(f"{foreign[0]}\n{begin}\n")
    assert run(["cron", "show", "--with=crontab"]) == 3


def test_line_says_where_slurm_is_and_runs_as_cron_would_run_it(
    crontab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    squeue = tmp_path / "opt slurm" / "bin" / "squeue"
    squeue.parent.mkdir(parents=True)
    squeue.write_text("#!/bin/sh\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert run(["--backend=slurm", "cron", "install", "--with=crontab"]) == 0
    assert "backend (flag)" in capsys.readouterr().err
    (line,) = [line for line in crontab.read_text().splitlines() if line.endswith(" tick")]
    command = line.split(" ", 5)[5].replace("\\%", "%")  # as cron does
    probe = command.replace(shlex.join(own_command()) + " tick", "env")
    subprocess.run(["/bin/sh", "-c", probe], env={"PATH": "/usr/bin:/bin"}, check=True, cwd="/")
    seen = dict(row.split("=", 1) for row in (tmp_path / "my home 100%" / "logs" / "tick.log").read_text().splitlines())
    assert seen["PATH"].split(":")[0] == str(squeue.parent)
    assert seen["PROMPTTUNER_HOME"] == str(tmp_path / "my home 100%")
    assert seen["SLURM_CONF"] == str(tmp_path / "slurm.conf")


def test_line_of_a_home_that_cannot_be_written_still_runs_so_that_the_reason_is_in_crons_mail(
    crontab: Path, tmp_path: Path
) -> None:
    assert run(["cron", "install", "--with=crontab"]) == 0
    (line,) = [line for line in crontab.read_text().splitlines() if line.endswith(" tick")]
    command = line.split(" ", 5)[5].replace("\\%", "%").replace(shlex.join(own_command()) + " tick", "echo because")
    (tmp_path / "my home 100%").rename(tmp_path / "away")  # even root could write what only lacks the right
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout == "because\n" and done.stderr == ""


def test_settings_that_cron_will_not_know_are_named(
    crontab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMPTTUNER_CHECKS_DIR", raising=False)  # tests share it, cron would not know it
    Path("prompttuner.toml").write_text("keep_days = 7\n")
    assert run(["cron", "install", "--with=crontab"]) == 0
    said = capsys.readouterr().err
    assert "keep_days" in said and "config.toml" in said
    Path("prompttuner.toml").unlink()
    assert run(["cron", "install", "--with=crontab"]) == 0
    assert capsys.readouterr().err == ""


def test_a_home_that_needs_a_ticket_is_said_to_need_one(
    crontab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Path.open

    def refused(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "config.toml":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refused)
    assert run(["tick"]) == 2
    assert "Kerberos or AFS ticket" in capsys.readouterr().err


def test_ticks_rarer_than_half_the_idle_limit_are_refused(crontab: Path) -> None:
    assert run(["--set", "cron_tick_s=400", "cron", "install", "--with=crontab"]) == 2
    assert not crontab.exists()


def test_the_successor_of_a_controller_on_a_lost_node_waits_until_its_ownership_has_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PROMPTTUNER_OWNER_EXPIRY_S", "3")
    monkeypatch.chdir(tmp_path)
    assert run(["tick"]) == 0
    with Store.open(tmp_path / "home" / "state.db") as store:
        store.acquire(OwnerInfo("n1", 7, "prompttuner run", "another machine", "1"), ttl_s=4.0)
    capsys.readouterr()
    assert run(["render", "controller"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" &")]
    words = line.removesuffix(" &").split()
    assert run([*words[words.index("run") :], "--until-done"]) == 0


def test_local_jobs_outlive_the_service_that_runs_the_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path))
    assert run(["--backend=local", "render", "systemd"]) == 0
    local = capsys.readouterr().out
    assert "KillMode=process" in local and "MemoryMax" not in local
    assert run(["--backend=slurm", "render", "systemd"]) == 0
    assert "MemoryMax=1G" in capsys.readouterr().out


def own_job() -> str:
    """The name of the controller's Slurm job, for the home that the environment names."""
    return controller_job(load_settings({}))


def test_controllers_of_two_homes_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = set()
    for home in ("one", "two"):
        monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path / home))
        names.add(own_job())
    assert len(names) == 2


@pytest.mark.slurm
def test_controller_runs_as_a_slurm_job_hands_over_and_stops(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PROMPTTUNER_BACKEND", "slurm")
    monkeypatch.chdir(tmp_path)

    def jobs() -> dict[str, str]:
        rows = slurm.run("squeue", "-h", "-n", own_job(), "-o", "%i %T").split("\n")
        return dict(row.split() for row in rows if row)

    def until(condition) -> None:  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + 240
        while not condition():
            assert time.monotonic() < deadline, (jobs(), [p.read_text() for p in tmp_path.glob("home/logs/*.log")])
            time.sleep(0.2)

    assert run(["controller", "start"]) == 0
    assert run(["controller", "start"]) == 4, "one is enough"
    until(lambda: sorted(jobs().values()) == ["PENDING", "RUNNING"])
    until(
        lambda: any("controller: slurm backend" in p.read_text() for p in tmp_path.glob("home/logs/controller-*.log"))
    )
    first, second = sorted(jobs(), key=int)
    assert f"afterany:{first}" in slurm.run("scontrol", "show", "job", second)
    assert "gpu" not in slurm.run("scontrol", "-o", "show", "job", first).partition("TRES=")[2].split()[0]

    def owns() -> bool:
        capsys.readouterr()
        assert run(["controller", "status"]) == 0
        return "The controller is" in capsys.readouterr().out

    until(owns)
    assert run(["controller", "stop"]) == 0
    until(lambda: not jobs())
    assert run(["controller", "stop"]) == 0


@pytest.mark.slurm
def test_controller_that_fails_at_once_has_no_successor(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("PROMPTTUNER_HOME", str(home))
    monkeypatch.setenv("PROMPTTUNER_DATABASE", "sqlite:////proc/nowhere/state.db")
    monkeypatch.chdir(tmp_path)
    assert run(["controller", "start"]) == 0
    deadline = time.monotonic() + 240
    while slurm.run("squeue", "-h", "-n", own_job()).strip():
        assert time.monotonic() < deadline, [path.read_text() for path in home.glob("logs/*.log")]
        time.sleep(0.2)
    said = "".join(path.read_text() for path in home.glob("logs/controller-*.log"))
    assert "its successor" in said
    assert "is withdrawn" in said
