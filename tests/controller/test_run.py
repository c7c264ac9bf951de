"""The foreground controller: what it waits for instead of ending."""

from __future__ import annotations

import errno
import logging
import os
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
