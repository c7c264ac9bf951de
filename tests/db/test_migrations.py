"""Every released revision, with data in it, comes up to date; what the models say is what the migrations make."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic.script import ScriptDirectory
from filled_store import everything, fill
from sqlalchemy import text

from prompttuner.db import Store
from prompttuner.db.queries import jobs
from prompttuner.db.store import schema
from prompttuner.db.store.failures import OldSchema
from prompttuner.db.upkeep import upgrading
from prompttuner.db.upkeep.integrity import check
from prompttuner.db.upkeep.transfer import backup
from prompttuner.errors import DatabaseError, NotOwner

REVISIONS = Path(__file__).parent / "revisions"
NEXT = f"{int(schema.HEAD) + 1:04}"
REBUILT = {"0001": ("bank_entries",)}
"""By revision: tables of it that are only an index, emptied by a later one and filled again from what they index."""
STALE = (
    "revision {0} differs from its saved text: if {0} is not released yet, run `python tests/db/revisions/make.py`; "
    "if it is, leave it alone and add a revision"
)


def load(url: str, revision: str) -> None:
    """Make the database that a version of this revision left behind."""
    if "://" in url:
        with psycopg.connect(url, autocommit=True) as raw:
            raw.execute((REVISIONS / f"{revision}.postgres.sql").read_text())  # type: ignore[arg-type]
        return
    with sqlite3.connect(url) as raw:
        raw.executescript((REVISIONS / f"{revision}.sqlite.sql").read_text())
    raw.close()


def test_the_known_revisions_are_those_of_the_migrations() -> None:
    scripts = ScriptDirectory.from_config(schema.alembic_config())
    assert [script.revision for script in reversed(list(scripts.walk_revisions()))] == list(schema.REVISIONS)
    assert scripts.get_heads() == [schema.HEAD]
    for revision in schema.REVISIONS:
        for kind in ("sqlite", "postgres"):
            assert (REVISIONS / f"{revision}.{kind}.sql").exists()


@pytest.mark.parametrize("revision", schema.REVISIONS)
def test_a_database_of_any_revision_comes_up_to_date_with_its_data(url: str, tmp_path: Path, revision: str) -> None:
    load(url, revision)
    before, after = Store.upgrade_at(url)
    assert (before, after) == (revision, schema.HEAD)
    with Store.open(url, notes_dir=tmp_path) as store:
        assert not [finding for finding in check(store) if finding.serious], STALE.format(revision)
        upgraded = everything(store)
    reference = tmp_path / "reference.db"
    with Store.open(reference, create=True) as fresh:
        fill(fresh)
        expected = everything(fresh)
    del upgraded["meta"], expected["meta"]  # each database has its own home id
    for table in REBUILT.get(revision, ()):
        assert expected[table] and not upgraded[table]
        expected[table] = []
    assert upgraded == expected, STALE.format(revision)


@pytest.fixture
def next_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A future version of this package, with one revision more."""
    folder = tmp_path / "migrations"
    shutil.copytree(Path(schema.__file__).parents[1] / "migrations", folder)
    (folder / "versions" / "r_next_test.py").write_text(
        f'import sqlalchemy as sa\nfrom alembic import op\n\nrevision = "{NEXT}"\n'
        f'down_revision = "{schema.HEAD}"\n\n\ndef upgrade():\n'
        '    op.add_column("jobs", sa.Column("colour", sa.Text(), server_default="blue", nullable=False))\n'
    )
    original = schema.alembic_config

    def config() -> object:
        found = original()
        found.set_main_option("script_location", str(folder))
        return found

    monkeypatch.setattr(schema, "alembic_config", config)
    monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, NEXT))
    monkeypatch.setattr(schema, "HEAD", NEXT)
    yield NEXT


@pytest.mark.parametrize("revision", schema.REVISIONS[:-1])
def test_a_state_of_an_older_version_can_be_saved_before_it_is_upgraded(tmp_path: Path, revision: str) -> None:
    old, saved = tmp_path / "old.db", tmp_path / "saved.db"
    load(str(old), revision)
    backup(old, saved)
    Store.upgrade_at(old)
    with pytest.raises(OldSchema, match="db backup"):
        Store.open(saved)
    assert Store.upgrade_at(saved) == (revision, schema.HEAD)
    with Store.open(old, notes_dir=tmp_path) as one, Store.open(saved, notes_dir=tmp_path) as other:
        assert everything(one)["jobs"] == everything(other)["jobs"]


def test_an_upgrade_is_asked_for_keeps_the_data_and_fences_the_old_controller(
    url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with Store.open(url, create=True, notes_dir=tmp_path) as store:
        fill(store)
        before = everything(store)
        controller = store.acquire()
        request.getfixturevalue("next_revision")
        with pytest.raises(DatabaseError, match=f"older schema {schema.REVISIONS[-2]}: run `prompttuner db upgrade`"):
            Store.open(url, create=True)
        with pytest.raises(DatabaseError, match="db upgrade"):
            Store.open(url, read_only=True)
        assert Store.upgrade_at(url) == (schema.REVISIONS[-2], NEXT)
        assert Store.upgrade_at(url) == (NEXT, NEXT)
        with pytest.raises(NotOwner):
            store.transact(controller, lambda session: None)
        with Store.open(url, notes_dir=tmp_path) as new:
            assert everything(new) == before
            with new.read() as session:
                assert session.execute(text("SELECT DISTINCT colour FROM jobs")).scalars().all() == ["blue"]
            assert new.acquire().generation > controller.generation


def test_a_failing_migration_changes_nothing(url: str, tmp_path: Path, next_revision: str) -> None:
    script = tmp_path / "migrations" / "versions" / "r_next_test.py"
    good = script.read_text()
    script.unlink()
    shutil.rmtree(script.parent / "__pycache__", ignore_errors=True)
    load(url, "0001")
    script.write_text(good + '    op.execute("INSERT INTO no_such_table VALUES (1)")\n')
    with pytest.raises(DatabaseError, match="no_such_table"):
        Store.upgrade_at(url)
    script.write_text(re.sub(r"colour", "color", good))
    shutil.rmtree(script.parent / "__pycache__", ignore_errors=True)
    assert Store.upgrade_at(url) == ("0001", next_revision)
    with Store.open(url, notes_dir=tmp_path) as store, store.read() as session:
        assert session.execute(text("SELECT DISTINCT color FROM jobs")).scalars().all() == ["blue"]


def old_state(url: str) -> None:
    """A database as the build before this one left it, with a running, a done, and a waiting job."""
    load(url, "0002")
    kind = "sqlite" if "://" not in url else "postgres"
    changes = [
        "UPDATE jobs SET loss = 2.5, lookup = '{\"budget_s\": 4.0}' WHERE id = 'j-run'",
        'UPDATE jobs SET lookup = \'{"budget_s": 3.0, "source": "vocab"}\' WHERE id = \'j-done\'',
    ]
    if kind == "sqlite":
        with sqlite3.connect(url) as raw:
            for change in changes:
                raw.execute(change)
        raw.close()
        return
    with psycopg.connect(url, autocommit=True) as server:
        for change in changes:
            server.execute(change)  # type: ignore[call-overload]


def test_losses_and_lookup_budgets_go_to_columns_of_their_own(url: str, tmp_path: Path) -> None:
    old_state(url)
    Store.upgrade_at(url)
    with Store.open(url, notes_dir=tmp_path) as store, store.read() as session:
        done, running = jobs.get(session, "j-done"), jobs.get(session, "j-run")
    assert (done.eval_loss, done.train_loss) == (1.25, None)
    assert (running.train_loss, running.eval_loss) == (2.5, None)
    assert (running.lookup_budget_s, running.lookup) == (4.0, None)
    assert (done.lookup_budget_s, done.lookup) == (3.0, {"budget_s": 3.0, "source": "vocab"})


def test_an_upgrade_saves_the_state_and_waits_for_no_controller_that_works(tmp_path: Path) -> None:
    path, home = tmp_path / "state.db", tmp_path / "home"
    home.mkdir()
    old_state(str(path))
    with Store.unchecked(path) as store:
        controller = store.acquire()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(NotOwner):
            patch.setattr(upgrading, "WAIT_S", 0.1)
            upgrading.upgrade(str(path), home)
        assert store.revision() == "0002" and list(home.glob("before*")) == []
        store.release(controller)
    done = upgrading.upgrade(str(path), home)
    assert (done.before, done.after) == ("0002", schema.HEAD)
    assert done.saved is not None and done.saved.stat().st_mode & 0o777 == 0o600
    with Store.unchecked(done.saved) as store:
        assert store.revision() == "0002"
    with Store.open(path) as store:
        assert store.acquire().generation > controller.generation
    assert upgrading.upgrade(str(path), home).saved is None, "nothing to do, nothing to save"


@pytest.mark.postgres
def test_an_upgrade_of_postgres_saves_it_by_pg_dump_or_says_what_is_missing(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_state(postgres_url)
    monkeypatch.setattr(upgrading.shutil, "which", lambda _name: None)
    with pytest.raises(DatabaseError, match="--no-backup"):
        upgrading.upgrade(postgres_url, tmp_path)
    with Store.unchecked(postgres_url) as store:
        assert store.revision() == "0002"
    monkeypatch.undo()
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    monkeypatch.setenv("PATH", f"{programs[-1]}:{os.environ['PATH']}")
    done = upgrading.upgrade(postgres_url, tmp_path)
    assert done.saved is not None and "INSERT" not in done.saved.read_text()[:20]
    assert "j-done" in done.saved.read_text()
