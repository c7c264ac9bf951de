"""``prompttuner db``."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from cli_calls import Cli


def test_upgrade_makes_a_private_database_and_is_idempotent(cli: Cli, home: Path) -> None:
    first = cli("db", "upgrade", "--json").json
    assert first["before"] is None
    assert (home / "state.db").stat().st_mode & 0o777 == 0o600
    assert cli("db", "upgrade", "--json").json["before"] == first["after"]
    assert "all is well" in cli("db", "check").out


def test_check_names_what_is_wrong_and_fails(cli: Cli, held: str, home: Path) -> None:
    assert cli("db", "check").code == 0
    with sqlite3.connect(home / "state.db") as connection:
        connection.execute("UPDATE jobs SET state = 'dreaming'")
    done = cli("db", "check", "--json")
    assert done.code == 6
    assert any("dreaming" in one["text"] for one in done.json["findings"])


def test_check_and_backup_of_nothing_say_so(cli: Cli, home: Path) -> None:
    for args in (["check"], ["backup", "copy.db"]):
        assert cli("db", *args).code == 6
    assert not Path("copy.db").exists()


def test_a_database_whose_spool_is_gone_is_adopted_by_another(cli: Cli, held: str, home: Path) -> None:
    (home / "spool").rename(home / "lost")
    refused = cli("tick")
    assert refused.code == 6 and "prompttuner db adopt" in refused.err
    assert cli("status").code == 0
    assert str(home / "spool") in cli("db", "adopt", "--json").json["before"]
    assert cli("tick").code == 0


def test_a_backup_holds_the_jobs(cli: Cli, held: str) -> None:
    assert cli("db", "backup", "copy.db").code == 0
    with sqlite3.connect("copy.db") as connection:
        assert connection.execute("SELECT id FROM jobs").fetchall() == [(held,)]
    again = cli("db", "backup", "copy.db")
    assert again.code == 6
    assert "exists already" in again.err


def test_a_copy_is_a_working_state(cli: Cli, held: str) -> None:
    target = Path("other.db").absolute()
    assert cli("db", "copy", "--to", target).code == 0
    assert cli("--set", f"database=sqlite:///{target}", "show", held, "--json").json["state"] == "held"
    refused = cli("db", "copy", "--to", "postgresql://me:hush@db/x")
    assert refused.code == 2
    assert "hush" not in refused.err
