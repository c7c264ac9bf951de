"""The foreground controller: what it waits for instead of ending."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from prompttuner.cli.frame.root import run as cli
from prompttuner.config import Settings
from prompttuner.controller import resources
from prompttuner.controller import run as running
from prompttuner.controller.requests import leave
from prompttuner.controller.tick import Controller
from prompttuner.controller.tick_report import TickReport
from prompttuner.db import OwnerInfo, Store
from prompttuner.db.queries import binding, jobs
from prompttuner.db.queries.changes import Change
from prompttuner.errors import BackendError, DatabaseError, NotOwner, SpoolError, Terminated
from prompttuner.protocol.requests import Purge
from prompttuner.slurm.spool import Spool

tick = Controller.tick


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", tick_s=0.1)


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        PermissionError(errno.EACCES, "the ticket of the file system has expired"),
        SpoolError("the spool cannot be read"),
        DatabaseError("the database is away"),
        BackendError("squeue: no answer"),
    ],
)
def test_a_tick_that_fails_is_told_and_the_next_one_tries_again(
    settings: Settings, fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = [fault, fault]

    def sometimes(controller: Controller) -> TickReport:
        if failing:
            raise failing.pop()
        return tick(controller)

    monkeypatch.setattr(Controller, "tick", sometimes)
    with caplog.at_level(logging.WARNING):
        running.run_until_done(settings)
    assert not failing
    assert [record.getMessage() for record in caplog.records] == [f"{fault}: the next tick tries again"]


def _ended_in_its_first_tick(controller: Controller) -> TickReport:
    leave(controller.resources.settings, Purge(job="none"))  # something is left to do
    os.kill(os.getpid(), signal.SIGTERM)
    return TickReport()


def test_sigterm_before_all_is_done_is_told_by_code_and_words(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Controller, "tick", _ended_in_its_first_tick)
    with pytest.raises(Terminated, match="ended by SIGTERM, with 0 jobs queued or running") as told:
        running.run_until_done(settings)
    assert told.value.exit_code == 143
    home = f"--home={settings.home}"
    assert cli([home, "run", "--until-done"]) == 143
    said = capsys.readouterr()
    assert "ended by SIGTERM" in said.err
    assert "no job is queued" not in said.out + said.err
    assert cli([home, "run"]) == 0, "a daemon ended by SIGTERM has not failed"
    assert "ended by SIGTERM; jobs go on" in capsys.readouterr().out


class TakeOver:
    """In place of a tick: before the real one, once, another controller takes the state over, as if this one had slept.

    Args:
        stays: it does not let go.
    """

    def __init__(self, stays: bool) -> None:
        self.stays, self.ticks = stays, 0

    def __call__(self, controller: Controller) -> TickReport:
        res = controller.resources
        self.ticks += 1
        if self.ticks == 1:
            leave(res.settings, Purge(job="none"))  # so that the tick has something to write
            res.state.store.release(res.state.ownership)
            with Store.open(res.settings.database_url, notes_dir=res.settings.home) as store:
                other = store.acquire(OwnerInfo.of_this_process("the other"), ttl_s=600.0)
                if not self.stays:
                    store.release(other)
        return tick(controller)


def test_a_command_that_took_over_for_one_tick_does_not_end_the_controller(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ticking = TakeOver(stays=False)
    monkeypatch.setattr(Controller, "tick", lambda controller: ticking(controller))
    with caplog.at_level(logging.WARNING):
        running.run_until_done(settings)
    assert ticking.ticks > 1
    assert "waiting until it lets go" in caplog.text
    assert [path.name for path in Spool(settings.spool_dir).inbox.iterdir()] == []


def test_who_is_no_longer_the_owner_ends_and_says_who_is(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = TakeOver(stays=True)
    monkeypatch.setattr(Controller, "tick", lambda controller: ticking(controller))
    with pytest.raises(NotOwner, match="the other"):
        running.run(settings.model_copy(update={"owner_expiry_s": 0.5}))
    assert ticking.ticks == 1


def test_a_controller_whose_state_was_moved_away_makes_no_new_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(controller: Controller) -> TickReport:
        home = controller.resources.settings.home
        home.rename(home.with_name("moved"))
        raise NotOwner("the file was replaced")

    monkeypatch.setattr(Controller, "tick", moved)
    with pytest.raises(DatabaseError):
        running.run(settings)
    assert not settings.home.exists()


@pytest.mark.parametrize("where", ["_unfinished", "reporter"])
def test_what_fails_between_two_ticks_does_not_end_the_controller(
    settings: Settings, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [DatabaseError("the server is restarting")]

    def now_and_then(*_: object) -> bool:
        if failing:
            raise failing.pop()
        return False

    real = getattr(running, where, now_and_then)
    if where != "reporter":
        monkeypatch.setattr(running, where, lambda *args: now_and_then() or real(*args))
    running.run(settings, now_and_then if where == "reporter" else None, until_done=True)
    assert not failing


def test_an_inbox_that_cannot_be_listed_for_a_moment_does_not_end_the_pause(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def listed(_spool: object) -> list[Path]:
        looks.append("look")
        if len(looks) < 3:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return [tmp_path / "request.json"]

    with running.controlling(settings) as controller:
        monkeypatch.setattr(running, "pending_requests", listed)
        running._sleep(controller, [], time.monotonic() + 600)
    assert len(looks) == 3


def test_a_controller_whose_reader_has_gone_ends(settings: Settings) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with pytest.raises(BrokenPipeError):
        running.run(settings, gone)


def test_the_same_trouble_is_told_again_after_an_hour(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    minutes = iter((0, 59, 61, 119, 122))
    with running.controlling(settings) as controller, caplog.at_level(logging.WARNING):
        warnings = resources.Warnings(lambda: 60.0 * next(minutes))
        res = replace(controller.resources, warnings=warnings)
        for _ in range(5):
            res.warn("Slurm is away")
    assert len(caplog.records) == 3


def test_two_homes_cannot_share_a_database_that_is_in_use(settings: Settings, tmp_path: Path) -> None:
    with running.controlling(settings) as controller:
        controller.state.write(
            lambda session: jobs.add(
                session, [{"id": "j1", "spec": {}, "pool": "p", "model": "m", "state": "held"}], time.time(), "test"
            ),
        )
    other = settings.model_copy(update={"home": tmp_path / "other", "database": settings.database_url})
    with pytest.raises(SpoolError, match="two homes") as caught, running.controlling(other):
        pass
    assert str(settings.spool_dir) in str(caught.value) and str(other.spool_dir) in str(caught.value)
    moved = settings.spool_dir.rename(tmp_path / "moved")  # the same spool elsewhere
    with running.controlling(settings.model_copy(update={"spool": moved})) as controller:
        over = [Change("j1", "cancelled", "test")]
        controller.state.write(lambda session: jobs.change(session, over, time.time()))
    with running.controlling(other) as controller:
        bound = controller.state.query(binding.bound_to)
    assert bound is not None and str(other.spool_dir) in bound[1]


def test_a_second_database_on_one_spool_is_warned_of(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        running.tick_once(settings)
        running.tick_once(settings)
        assert caplog.records == []
        running.tick_once(settings.model_copy(update={"database": str(tmp_path / "other.db")}))
        running.tick_once(settings)
    assert [record.getMessage().count("was served from the database") for record in caplog.records] == [1, 1]


def test_a_spool_that_cannot_be_written_is_told_once_and_tried_once_a_tick(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running.tick_once(settings)
    leave(settings, Purge(job="none"))
    ticks: list[float] = []

    def read_only(controller: Controller) -> TickReport:
        ticks.append(time.monotonic())
        if len(ticks) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        scratch = settings.spool_dir / "replies" / f".a.json.{len(ticks)}"
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(scratch))

    monkeypatch.setattr(Controller, "tick", read_only)
    with caplog.at_level(logging.WARNING):
        running.run(settings)
    assert len(ticks) == 5
    assert all(later - before >= settings.tick_s * 0.9 for before, later in itertools.pairwise(ticks))
    assert [record.getMessage() for record in caplog.records] == [
        f"{settings.spool_dir / 'replies'}: Read-only file system: the next tick tries again"
    ]
