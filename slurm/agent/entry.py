"""What submitit runs in an allocation: the pickle it makes holds this function's name and the settings' path only."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import uuid
from pathlib import Path
from types import FrameType

from prompttuner.files import create_json, write_json
from prompttuner.slurm.agent.agent import Agent
from prompttuner.slurm.agent.place import host_name, native_id
from prompttuner.slurm.spool import PROTOCOL, AgentSettings, read_own_json

__all__ = ["main"]

EXIT_FILE = "exit.json"
INSTANCE_FILE = "instance.json"


def main(settings_path: str) -> str:
    """Be the agent of one allocation until it ends; returns the reason.

    A second copy of the same allocation (a doubled sbatch, a requeued job) finds ``instance.json`` taken and leaves at
    once without writing anything, so that no UUID is admitted twice.
    """
    path = Path(settings_path)
    folder = path.parent
    value = read_own_json(path)
    if value is None:
        return _refuse(f"no settings at {path}: the allocation was cleaned up before it started")
    settings = AgentSettings.from_json(value)
    if settings.protocol != PROTOCOL:
        return _refuse(f"the spool speaks protocol {settings.protocol}, this prompttuner {PROTOCOL}: not started")
    instance = uuid.uuid4().hex
    claim = {"instance": instance, "pid": os.getpid(), "host": host_name(), "native_id": native_id(), "at": time.time()}
    if not create_json(folder / INSTANCE_FILE, claim):
        return _refuse("another process already is the agent of this allocation: this copy leaves")

    agent = Agent(folder, settings, instance)
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
            write_json(
                folder / EXIT_FILE, {"reason": reason, "detail": detail, "at": time.time(), "instance": instance}
            )
    return reason


def _refuse(message: str) -> str:
    print(f"prompttuner agent: {message}", file=sys.stderr, flush=True)
    return "refused"


def _replace_signal_handlers(agent: Agent, names: list[str]) -> list[signal.Signals]:
    """Take submitit's handlers away (they would requeue): any of these signals means checkpoint, then end."""

    def handler(number: int, _frame: FrameType | None) -> None:
        agent.told_to_end = signal.Signals(number).name

    numbers = [signal.Signals[f"SIG{name.removeprefix('SIG')}"] for name in names]
    for number in numbers:
        signal.signal(number, handler)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    return numbers
