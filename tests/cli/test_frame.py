"""The frame: quick, lazy, plain off a terminal, and every error a message with an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from cli_calls import Cli
from typer.core import TyperGroup

from prompttuner.cli.frame import registry
from prompttuner.cli.frame import root as frame
from prompttuner.cli.frame.registry import ENTRIES, Entry
from prompttuner.db.store.store import Store
from prompttuner.errors import PromptTunerError, StateError


def fresh(code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


IMPORTED = (
    "import sys\nfrom prompttuner.cli.frame.root import run\ncode = run(sys.argv[1:])\n"
    "print(code, *sorted({n.split('.')[0] for n in sys.modules}), file=sys.stderr)"
)


@pytest.mark.parametrize(
    ("args", "never"),
    [
        (["--help"], {"torch", "transformers", "peft", "sqlalchemy", "numpy", "pydantic", "submitit", "alembic"}),
        (["submit", "--help"], {"torch", "transformers", "peft", "sqlalchemy", "submitit"}),
        (["status"], {"torch", "transformers", "peft", "submitit", "alembic"}),
        (["config", "show"], {"torch", "transformers", "peft", "sqlalchemy", "submitit"}),
    ],
)
def test_heavy_packages_are_imported_only_when_needed(tmp_path: Path, args: list[str], never: set[str]) -> None:
    if args == ["status"]:
        Store.upgrade_at(tmp_path / "state.db")
    done = fresh(IMPORTED, *args, PROMPTTUNER_HOME=str(tmp_path))
    code, *modules = done.stderr.split()
    assert code == "0"
    assert never & set(modules) == set()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_command_exists_and_its_help_is_the_one_listed(entry: Entry) -> None:
    command = registry.load(entry.name)
    assert (command.help or "").strip().splitlines()[0] == entry.help
    assert isinstance(command, TyperGroup) == entry.group
    assert import_module(f"prompttuner.cli.{entry.module}").__doc__


def test_help_off_a_terminal_is_plain_and_lists_all(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    assert "\x1b" not in done.out
    assert all(f"  {entry.name} " in done.out for entry in ENTRIES)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["statsu"], "Did you mean 'status'"),
        (["submit", "--no-such"], "No such option"),
        (["--set", "tick_s", "status"], "KEY=VALUE"),
        (["--set", "tik_s=1", "status"], "did you mean 'tick_s'"),
        (["--backend", "lsf", "status"], "'local' or 'slurm'"),
    ],
)
def test_wrong_usage_exits_with_2(cli: Cli, args: list[str], says: str) -> None:
    done = cli(*args)
    assert done.code == 2
    assert says in done.err


def test_settings_by_flag_reach_the_command(cli: Cli) -> None:
    shown = cli(
        "--set", "slurm.setup=['module load cuda']", "--set", "idle_limit_s=5m", "config", "show", "--json"
    ).json
    assert shown["idle_limit_s"] == {"value": 300.0, "origin": "flag"}
    assert shown["slurm.setup"]["value"] == ["module load cuda"]


def test_config_show_masks_secrets(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTTUNER_DATABASE", "postgresql://me:hush@db/x")
    monkeypatch.setenv("PROMPTTUNER_WEBHOOK", "https://hooks.example.org/T0/hush")
    for args in (["config", "show"], ["config", "show", "--json"], ["doctor"], ["status"]):
        done = cli(*args)
        assert "hush" not in done.out + done.err
    assert cli("config", "show", "database").out.count("environment PROMPTTUNER_DATABASE") == 1


def test_config_show_of_an_unknown_setting_names_the_nearest(cli: Cli) -> None:
    done = cli("config", "show", "idle_limit")
    assert done.code == 3
    assert "did you mean 'idle_limit_s'" in done.err


def test_a_database_of_a_newer_version_is_refused_by_all_and_left_alone(cli: Cli, spec: Path, home: Path) -> None:
    home.mkdir(mode=0o700)
    Store.upgrade_at(home / "state.db")
    with sqlite3.connect(home / "state.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = (home / "state.db").read_bytes()
    for args in (["status"], ["submit", spec], ["tick"], ["db", "upgrade"], ["cancel", "jx"]):
        done = cli(*args)
        assert done.code == 6, args
        assert "9999" in done.err
    assert (home / "state.db").read_bytes() == before
    assert not (home / "spool" / "inbox").exists() or not list((home / "spool" / "inbox").iterdir())


def test_a_database_that_is_none_is_a_clear_message(cli: Cli, home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "state.db").write_bytes(b"this is no database" * 100)
    done = cli("status")
    assert done.code == 6
    assert "not a SQLite database" in done.err


def raising(error: BaseException) -> object:
    def replacement(**_: object) -> None:
        raise error

    return replacement


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (StateError("not now"), 4, "not now"),
        (PromptTunerError("postgresql://me:hush@db/x is away"), 1, "postgresql://me:***@db/x"),
        (KeyboardInterrupt(), 130, "nothing is lost"),
        (OSError(28, "No space left on device", "/x"), 6, "no space left on the disk (/x)"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "/x"), 1, "/x: Too many levels"),
        (ZeroDivisionError("oops"), 70, "a fault in prompttuner itself: ZeroDivisionError: oops"),
    ],
)
def test_every_error_is_a_message_and_a_code(
    capsys: pytest.CaptureFixture[str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    says: str,
) -> None:
    monkeypatch.setattr(frame, "app", raising(error))
    assert frame.run([]) == code
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


def test_the_traceback_of_a_fault_is_kept_in_a_private_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frame, "app", raising(ZeroDivisionError("oops")))
    frame.run([])
    kept = home / "logs" / "last-fault.txt"
    assert str(kept) in capsys.readouterr().err
    assert "ZeroDivisionError: oops" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def listen_to_ctrl_c() -> None:
    """A shell starts its background jobs deaf to it, a test run among them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_nothing_is_imported_before_ctrl_c_can_be_caught() -> None:
    root = Path(frame.__file__).parents[3]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import prompttuner.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, check=True).stdout.split()
    assert "prompttuner.cli" in loaded
    assert not {"typing", "re", "enum", "signal", "prompttuner.cli.frame.root"} & set(loaded)


def test_a_second_ctrl_c_does_not_hide_the_exit_code() -> None:
    code = (
        "import atexit, os, signal, sys\n"
        "from prompttuner import cli\n"
        "from prompttuner.cli.frame import root as frame\n"
        "def interrupted(_args): raise KeyboardInterrupt\n"
        "frame.run = interrupted\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=listen_to_ctrl_c, timeout=120
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_in_a_running_controller_exits_130(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from prompttuner.cli import main; main()", "run"],
        env={**os.environ, "PROMPTTUNER_HOME": str(tmp_path / "home"), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    )
    owner = tmp_path / "home" / "spool" / "owner.json"
    end = time.monotonic() + 120
    while not owner.exists():
        assert process.poll() is None and time.monotonic() < end, "the controller did not start"
        time.sleep(0.1)
    second = fresh("from prompttuner.cli import main; main()", "tick", PROMPTTUNER_HOME=str(tmp_path / "home"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert second.returncode == 5
    assert str(process.pid) in second.stderr


def test_a_reader_that_goes_away_ends_the_command_quietly(tmp_path: Path) -> None:
    script = (
        f"{sys.executable} -c 'from prompttuner.cli import main; main()' config show | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PROMPTTUNER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() in {"0", "1"}
    assert done.stderr == ""


def test_output_to_a_full_disk_is_a_message(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from prompttuner.cli import main; main()", "config", "show"],
            env={**os.environ, "PROMPTTUNER_HOME": str(tmp_path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 6
    assert done.stderr == "error: no space left on the disk: free some, then do it again; nothing is lost\n"


def test_completion_can_be_installed(cli: Cli) -> None:
    done = fresh(
        "from prompttuner.cli import main; main()",
        _PROMPTTUNER_COMPLETE="complete_bash",
        COMP_WORDS="prompttuner sub",
        COMP_CWORD="1",
    )
    assert done.stdout.split() == ["submit"]


def offered(home: Path, words: str) -> list[str]:
    """What bash would offer for the last of these words."""
    done = fresh(
        "from prompttuner.cli import main; main()",
        _PROMPTTUNER_COMPLETE="complete_bash",
        COMP_WORDS=f"prompttuner {words}",
        COMP_CWORD=str(len(words.split(" "))),
        PROMPTTUNER_HOME=str(home),
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_knows_jobs_states_settings_and_models(cli: Cli, home: Path, held: str) -> None:
    assert offered(home, "show held") == ["held-one"]
    assert offered(home, "cancel ") == ["held-one"]
    assert offered(home, "status --state exh") == ["exhausted"]
    assert offered(home, "config show slurm.part") == ["slurm.partition"]
    assert "small" in offered(home, "bank list --model ")


def test_completion_without_a_state_offers_nothing_and_says_nothing(tmp_path: Path) -> None:
    assert offered(tmp_path / "none", "show ") == []
    assert offered(tmp_path / "none", "bank show ") == []
    assert not (tmp_path / "none").exists()


def test_leaf_commands_do_not_offer_to_install_completion(cli: Cli) -> None:
    assert "--install-completion" not in cli("status", "--help").out
    assert "--install-completion" not in cli("cancel", "--help").out
    assert "--install-completion" in cli("--help").out
