"""When a job whose workers keep dying without a word is given up, and when not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prompttuner.files import make_private_dir, write_json
from prompttuner.protocol.jobs import Membership
from prompttuner.worker.membership import member_dir
from prompttuner.worker.resume import MAX_CRASHES, crashes_without_progress

Died = dict[str, Any]


def died(step: int, start: int = 0, checkpoint: int | None = None, phase: str = "running") -> Died:
    return {"start_step": start, "step": step, "phase": phase, "checkpoint": checkpoint}


def count(tmp_path: Path, *generations: Died | None) -> int:
    """Of generations that ended as told, oldest first; None: one that was planned and never began."""
    previous = []
    for number, said in enumerate(generations, 1):
        agent = f"agent{number}"
        folder = make_private_dir(member_dir(tmp_path, number, agent))
        progress = {"phase": "ready"} if said is None else {k: v for k, v in said.items() if k != "checkpoint"}
        write_json(folder / "progress.json", progress)
        if said is not None and said["checkpoint"] is not None:
            write_json(folder / "checkpoint.json", {"step": said["checkpoint"]})
        previous.append((number, (agent,)))
    return crashes_without_progress(tmp_path, Membership(len(generations) + 1, ("new",), previous=tuple(previous)))


def test_workers_that_die_at_one_step_again_and_again_are_given_up(tmp_path: Path) -> None:
    assert count(tmp_path / "same", died(4), died(4), None, died(4)) == MAX_CRASHES
    assert count(tmp_path / "never_further", died(5), died(3), died(4)) == MAX_CRASHES
    assert count(tmp_path / "first_step", *[{"start_step": 0, "phase": "running", "checkpoint": None}] * 3) == 3


@pytest.mark.parametrize(
    ("generations", "crashes"),
    [
        ((), 0),
        ((died(1), died(4), died(64)), 1),
        ((died(64), died(64), died(64, checkpoint=60)), 0),
        ((died(64, checkpoint=60), died(61, start=60), died(61, start=60)), 2),
        ((died(4), died(4), died(4, phase="left")), 0),
        ((died(4, phase="moved"), died(4), died(4)), 2),
        ((died(9), died(9), died(20), died(20)), 2),
    ],
)
def test_accidents_that_leave_a_job_further_than_before_are_no_reason_to_give_it_up(
    tmp_path: Path, generations: tuple[Died, ...], crashes: int
) -> None:
    assert count(tmp_path, *generations) == crashes < MAX_CRASHES
