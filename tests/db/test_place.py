"""Addresses of databases, and the file systems they lie on."""

from __future__ import annotations

import importlib
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from prompttuner.db import NetworkFileSystemWarning, Store
from prompttuner.db.store.place import file_system_of, parse_place
from prompttuner.errors import DatabaseError

store_module = importlib.import_module("prompttuner.db.store.store")

MOUNTS = r"""
proc /proc proc rw 0 0
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb /home/ada/local\040disk xfs rw 0 0
lustre@tcp:/x /scratch lustre rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/x.db", "ext4"),
        ("/home/ada/.prompttuner/state.db", "nfs4"),
        ("/home/ada/local disk/state.db", "xfs"),
        ("/scratch", "lustre"),
        ("/scratchy/x", "ext4"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_closest_mount(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert file_system_of(Path(path), mounts) == kind


def test_without_a_list_of_mounts_nothing_is_claimed(tmp_path: Path) -> None:
    assert file_system_of(Path("/x"), tmp_path / "none") is None


def test_a_network_file_system_is_warned_of_and_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Store.open(tmp_path / "a.db", create=True).close()
    monkeypatch.setattr(store_module, "file_system_of", lambda path: "nfs4")
    with pytest.warns(NetworkFileSystemWarning, match=r"nfs4.*Postgres"):
        store = Store.open(tmp_path / "a.db")
    with store, store.read() as session:
        assert session.connection().exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"


def test_a_wal_database_is_brought_back_to_the_rollback_journal(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Store.open(path, create=True).close()
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    raw.close()
    with Store.open(path) as store, store.read() as session:
        assert session.connection().exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"


@pytest.mark.parametrize("url", ["postgres://u:s3cret@h:5433/n?sslmode=require", "postgresql+psycopg://u:s3cret@h/n"])
def test_a_postgres_url_is_shown_without_its_password(url: str) -> None:
    place = parse_place(url)
    assert place.path is None
    assert place.url.drivername == "postgresql+psycopg"
    assert str(place).startswith("postgresql://u:***@h")
    assert "s3cret" not in f"{place} {place!r}"
    assert "s3cret" not in str(parse_place("postgresql://u@h/n?password=s3cret&sslpassword=s3cret"))


def test_a_password_that_would_show_as_part_of_the_host_is_refused_without_showing_it() -> None:
    with pytest.raises(DatabaseError, match="%xx") as caught:
        parse_place("postgresql://ada:s3@cret@dbhost/n")
    assert "s3" not in str(caught.value) and "cret" not in str(caught.value)


def test_importing_the_store_touches_no_database_and_no_alembic(tmp_path: Path) -> None:
    program = "import sys, prompttuner.db; print(*(m for m in ('alembic', 'psycopg', 'torch') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120
    )
    assert done.stdout.strip() == ""
    assert list(tmp_path.iterdir()) == []
