"""Where a newcomer resumes from, and when a job that keeps dying is given up; fixed paths, no listing (no torch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prompttuner.protocol.files import read_message, understood
from prompttuner.protocol.jobs import ENDED_PHASES, CheckpointPointer, Membership
from prompttuner.worker.membership import member_dir, read_progress

__all__ = ["MAX_CRASHES", "crashes_without_progress", "newest_checkpoint"]

MAX_CRASHES = 3
"""A worker that died so often in a row without an error and without getting further is not started again."""


def _checkpoints(job_dir: Path, plan: Membership) -> Iterator[tuple[Path, CheckpointPointer]]:
    """Folders that hold a checkpoint with what checkpoint.json says, by generation, newest first."""
    for generation, members in reversed(plan.previous):
        found = _checkpoints_of(job_dir, generation, members)
        yield from sorted(found, key=lambda item: -item[1].step)


def _checkpoints_of(job_dir: Path, generation: int, members: Sequence[str]) -> list[tuple[Path, CheckpointPointer]]:
    found = []
    for agent in members:
        folder = member_dir(job_dir, generation, agent)
        pointer = understood(read_message(CheckpointPointer, folder / CheckpointPointer.FILE))
        if pointer is not None:
            found.append((folder, pointer))
    return found


def newest_checkpoint(job_dir: Path, plan: Membership) -> Iterator[tuple[Path, CheckpointPointer]]:
    """Checkpoints to resume from, best first: of the highest earlier generation that has any, then older ones.

    All but the first matter only when the first can not be read.
    """
    return _checkpoints(job_dir, plan)


def crashes_without_progress(job_dir: Path, plan: Membership) -> int:
    """How many generations before ``plan`` in a row died without a word and without getting further than before.

    A member that leaves, moves on, fails or loses the others says so. One that was killed (out of memory, a broken
    driver) leaves the phase ``running`` behind, as does a node that went down or an agent that was preempted. Deaths
    at ever later steps, or after a checkpoint, are such accidents; three in a row that never got beyond the first of
    them are none.
    """
    reached, first_step = list[int](), None  # the step that each got to, newest first
    for generation, members in reversed(plan.previous):
        seen = [read_progress(job_dir, generation, agent) for agent in members]
        began = [progress for progress in seen if progress is not None and progress.start_step is not None]
        if not began:
            continue  # planned, never began
        if all(progress.phase in ENDED_PHASES for progress in began):
            break
        start = max(progress.start_step or 0 for progress in began)
        if first_step is not None and start != first_step:
            break
        if any(pointer.step > start for _, pointer in _checkpoints_of(job_dir, generation, members)):
            break
        first_step = start
        reached.append(max(progress.step or start for progress in began))
    return 0 if not reached else max(index for index, step in enumerate(reached) if step == max(reached)) + 1
