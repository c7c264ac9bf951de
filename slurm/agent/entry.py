"""What submitit runs in an allocation: the pickle it makes holds this function's name and the settings' path only."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from prompttuner.protocol.agents import PROTOCOL, AgentSettings, Farewell, Instance
from prompttuner.protocol.files import create_message, write_message
from prompttuner.protocol.wire import Unread
from prompttuner.slurm.agent.agent import Agent
from prompttuner.slurm.agent.place import host_name, native_id
from prompttuner.slurm.spool import read_own

__all__ = ["main"]


def main(settings_path: str) -> str:
    """Be the agent of one allocation until it ends; returns the reason.

    A second copy of the same allocation (a doubled sbatch, a requeued job) finds ``instance.json`` taken and leaves at
    once without writing anything, so that no UUID is admitted twice.
    """
    path = Path(settings_path)
    folder = path.parent
    settings = read_own(AgentSettings, path)
    if settings is None:
        return _refuse(f"no settings at {path}: the allocation was cleaned up before it started")
    if isinstance(settings, Unread):
        return _refuse(settings.why)
    if settings.protocol != PROTOCOL:
        return _refuse(f"the spool speaks protocol {settings.protocol}, this prompttuner {PROTOCOL}: not started")
    instance = uuid.uuid4().hex
    claim = Instance(instance, os.getpid(), host_name(), native_id(), time.time())
    if not create_message(folder / Instance.FILE, claim):
        return _refuse("another process already is the agent of this allocation: this copy leaves")

    try:
        agent = Agent(folder, settings, instance)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        write_message(folder / Farewell.FILE, Farewell("crash", said, time.time(), instance))
        raise
    signals = _replace_signal_handlers(agent, settings.signals)
    reason, detail = "crash", ""
    try:
        reason, detail = agent.run()
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        raise
    finally:
        for number in signals:  # nothing may interrupt the farewell
            signal.signal(number, signal.SIG_IGN)
        agent.close()
        with contextlib.suppress(OSError):
            write_message(folder / Farewell.FILE, Farewell(reason, detail, time.time(), instance))
    return reason


def _refuse(message: str) -> str:
    print(f"prompttuner agent: {message}", file=sys.stderr, flush=True)
    return "refused"


def _replace_signal_handlers(agent: Agent, names: Sequence[str]) -> list[signal.Signals]:
    """Take submitit's handlers away (they would requeue): any of these signals means checkpoint, then end."""

    def handler(number: int, _frame: FrameType | None) -> None:
        agent.told_to_end = signal.Signals(number).name

    numbers = [signal.Signals[f"SIG{name.removeprefix('SIG')}"] for name in names]
    for number in numbers:
        signal.signal(number, handler)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    return numbers
