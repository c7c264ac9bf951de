"""Signals to a lease: SIGTERM and SIGINT mean checkpoint and leave, SIGUSR1 and SIGUSR2 checkpoint and go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["LeaveRequested", "Signals"]


class LeaveRequested(Exception):
    """The lease was asked to leave while it waited for others."""


class Signals:
    """What was asked for so far; looked at between steps, never in the middle of one."""

    def __init__(self, leave_on: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)) -> None:
        self.leave = False
        self._save = False
        self._leave_on = leave_on

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        asked, self._save = self._save, False
        return asked

    def check(self) -> None:
        """Raise LeaveRequested if asked to leave: for waits, which may take long."""
        if self.leave:
            raise LeaveRequested

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals within this block, and undo it after. Off the main thread nothing can be handled."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}
        for number in self._leave_on:
            before[number] = signal.signal(number, self._on_leave)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            before[number] = signal.signal(number, self._on_save)
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, before.keys())
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_leave(self, _number: int, _frame: FrameType | None) -> None:
        self.leave = True

    def _on_save(self, _number: int, _frame: FrameType | None) -> None:
        self._save = True
