"""``events``, ``top`` and ``purge``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_calls import Cli
from sqlalchemy import update

from prompttuner.cli.state import events as events_module
from prompttuner.db.store.store import Store
from prompttuner.db.tables.models import Job


def test_events_are_told_with_their_cause(cli: Cli, held: str) -> None:
    assert cli("cancel", held).code == 0
    lines = [json.loads(line) for line in cli("events", "--job", held, "--json").out.splitlines()]
    assert [line["seq"] for line in lines] == sorted(line["seq"] for line in lines)
    assert all(line["job"] == held and line["cause"] for line in lines)
    assert "cancelled by" in cli("events", "-n", "1").out
    assert cli("events", "-n", "0").out == ""
    assert cli("events", "--kind", "no.such").out == ""


def test_following_events_shows_each_once(cli: Cli, held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([None, None])

    def sleep(_seconds: float) -> None:
        try:
            next(looks)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(events_module.time, "sleep", sleep)
    done = cli("events", "--follow", "--json")
    assert done.code == 130
    seqs = [json.loads(line)["seq"] for line in done.out.splitlines()]
    assert seqs == sorted(set(seqs))
    assert seqs


def test_following_from_now_on_shows_all_that_comes_and_waits_for_a_database_that_is_away(
    cli: Cli, held: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, looks, shown = home / "state.db", iter(range(10)), list[str]()

    def sleep(_seconds: float) -> None:
        look = next(looks)
        if look == 0:
            assert cli("release", held).code == 0
        elif look == 1:
            database.rename(home / "elsewhere.db")
            database.mkdir()
        elif look == 3:
            database.rmdir()
            (home / "elsewhere.db").rename(database)
            assert cli("cancel", held).code == 0
        elif look == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(events_module, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(events_module, "print_json", lambda view, lines: shown.append(view["kind"]))
    done = cli("events", "--follow", "-n", "0", "--kind", "job.", "--json")
    assert shown == ["job.queued", "job.cancelled"]
    assert done.code == 130


def test_following_ends_when_the_reader_has_gone_although_nothing_happens(cli: Cli, held: str, home: Path) -> None:
    command = [sys.executable, "-c", "from prompttuner.cli import main; main()", "events", "-f", "-n", "1"]
    environment = {**os.environ, "PROMPTTUNER_HOME": str(home)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and b"job.submitted" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=120) == 0


def test_events_of_an_unknown_job_and_of_no_state(cli: Cli, home: Path) -> None:
    assert cli("events", "--job", "jx").code == 3
    assert cli("events").code == 0


def test_top_off_a_terminal_shows_jobs_and_pool_once(cli: Cli, held: str) -> None:
    assert cli("release", held).code == 0
    done = cli("top")
    assert done.code == 0
    assert "1 active job," in done.out
    assert held in done.out
    assert "1 GPU held or asked for" in done.out


def test_top_without_any_state(cli: Cli, home: Path) -> None:
    assert "no jobs yet" in cli("top", "--once").out


def test_purge_takes_ended_jobs_only(cli: Cli, held: str, home: Path) -> None:
    assert cli("purge").code == 2
    assert cli("purge", "jnosuch").code == 3
    early = cli("purge", held)
    assert early.code == 4
    assert "cancel it first" in early.err
    assert (home / "spool" / "jobs" / held).is_dir()
    assert cli("cancel", held).code == 0
    assert cli("purge", "--older-than", "1d", "--json").json == []
    assert cli("purge", "--older-than", "soon").code == 2
    with Store.open(home / "state.db") as store:
        ownership = store.acquire()
        past = time.time() - 2 * 86400
        store.transact(ownership, lambda s: s.execute(update(Job).where(Job.id == held).values(finished_at=past)))
        store.release(ownership)
    unasked = cli("purge", "--older-than", "1d")
    assert unasked.code == 2 and "--yes" in unasked.err, "nobody can be asked here"
    assert (home / "spool" / "jobs" / held).is_dir()
    assert cli("purge", "--older-than", "1d", "--yes", "--json").json[0]["job"] == held
