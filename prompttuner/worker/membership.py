"""Who works for a job: plans of members by generation, claimed so that no generation has two authors (no torch)."""

from __future__ import annotations

from pathlib import Path

from prompttuner.errors import SpoolError
from prompttuner.files import create_json, make_private_dir
from prompttuner.protocol.files import create_message, read_message, understood, write_message
from prompttuner.protocol.jobs import Membership, Progress, StorePlace
from prompttuner.protocol.wire import Unread

__all__ = [
    "member_dir",
    "member_file",
    "propose",
    "read_membership",
    "read_progress",
]


def member_dir(job_dir: Path, generation: int, agent: str) -> Path:
    """The folder that only this member writes, and only in this generation."""
    return Path(member_file(job_dir, generation, agent, ""))


def member_file(job_dir: Path | str, generation: int, agent: str, name: str) -> str:
    """A file in the folder of :func:`member_dir`; text, since a controller's tick asks for thousands."""
    return f"{job_dir}/g{generation}/{agent}/{name}"


def read_progress(job_dir: Path, generation: int, agent: str) -> Progress | None:
    """A member's progress; None when it has not written any."""
    return understood(read_message(Progress, member_file(job_dir, generation, agent, Progress.FILE)))


def _claim_path(job_dir: Path | str, generation: int) -> str:
    return f"{job_dir}/claims/{generation}.json"


def read_membership(job_dir: Path | str) -> Membership | None:
    """The newest plan of a job; None before the first.

    ``plan.json`` is where to start; a claim of a later generation is a plan whose author died or was slow before
    replacing plan.json, and counts. So the truth is the chain of claims, which no two writers can fork.

    Raises:
        SpoolError: a plan makes no sense.
    """
    newest = _read_plan(f"{job_dir}/{Membership.FILE}")
    while True:
        claimed = _read_plan(_claim_path(job_dir, newest.generation + 1 if newest is not None else 1))
        if claimed is None:
            return newest
        newest = claimed


def _read_plan(path: Path | str) -> Membership | None:
    plan = read_message(Membership, path)
    if isinstance(plan, Unread):
        raise SpoolError(f"{plan.why}; was it edited by hand?")
    return plan


def propose(job_dir: Path, plan: Membership) -> bool:
    """Make ``plan`` the job's newest generation; False when somebody else has claimed that generation before.

    Proposing the same plan again, after a crash in the middle, is no conflict. After False, read again and propose a
    higher generation if a change is still needed. The members' folders and the files that others will poll are made
    first: on NFS a name that was looked up in vain stays missing for a minute.

    Raises:
        OSError: disk full, folder missing.
    """
    for agent in plan.members:
        folder = make_private_dir(member_dir(job_dir, plan.generation, agent))
        for name in (Progress.FILE, StorePlace.FILE):
            create_json(folder / name, {})
    make_private_dir(job_dir / "claims")
    claim = Path(_claim_path(job_dir, plan.generation))
    if not create_message(claim, plan) and read_message(Membership, claim) != plan:
        return False
    write_message(job_dir / Membership.FILE, plan)
    return True
