"""The foreground controller: what it waits for instead of ending."""

from __future__ import annotations

import errno
import logging
import os
import time
from functools import partial
from pathlib import Path

import pytest

from prompttuner.config import Settings
from prompttuner.controller import run as running
from prompttuner.controller.context import Context
from prompttuner.controller.tick import TickReport, tick
from prompttuner.errors import BackendError, DatabaseError, NotOwner, SpoolError


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

    def sometimes(ctx: Context) -> TickReport:
        if failing:
            raise failing.pop()
        return tick(ctx)

    monkeypatch.setattr(running, "tick", sometimes)
    with caplog.at_level(logging.WARNING):
        running.run_until_done(settings)
    assert not failing
    assert [record.getMessage() for record in caplog.records] == [f"{fault}: the next tick tries again"]


def test_who_is_no_longer_the_owner_ends(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_ctx: Context) -> TickReport:
        raise NotOwner("somebody else has taken over")

    monkeypatch.setattr(running, "tick", lost)
    with pytest.raises(NotOwner):
        running.run(settings)


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

    with running.controlling(settings) as ctx:
        monkeypatch.setattr(running, "pending_requests", listed)
        running._sleep(ctx, [], time.monotonic() + 600)
    assert len(looks) == 3


def test_a_controller_whose_reader_has_gone_ends(settings: Settings) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with pytest.raises(BrokenPipeError):
        running.run(settings, gone)


def test_the_same_trouble_is_told_again_after_an_hour(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with running.controlling(settings) as ctx, caplog.at_level(logging.WARNING):
        now = ctx.steady()
        for minutes in (0, 59, 61, 119, 122):
            ctx.steady = partial(float, now + 60.0 * minutes)
            ctx.warn("Slurm is away")
    assert len(caplog.records) == 3


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
