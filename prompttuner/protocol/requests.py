"""Requests: what commands ask the controller for, one class a kind, and its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from prompttuner.protocol.spec import ResolvedSpec, check_priority, check_time
from prompttuner.protocol.wire import Json, Message, Unread

__all__ = [
    "Cancel",
    "Drain",
    "Hold",
    "NewJob",
    "Purge",
    "Release",
    "ReleaseAgent",
    "Reply",
    "Request",
    "ResumePool",
    "Scale",
    "Submit",
    "Update",
    "read_request",
]

JOB_ID = re.compile(r"[A-Za-z0-9]{2,64}")
"""A job's id names a folder."""
REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""A request's id names the file of its reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Message):
    """Base of the requests."""

    KIND: ClassVar[str] = ""
    SPARSE: ClassVar[bool] = True

    id: str = ""
    at: float = 0.0
    """When it was asked (Unix seconds)."""
    by: str = ""
    """The user who asked."""

    @property
    def who(self) -> str:
        """The asker, in words."""
        return self.by or "the user"

    def to_json(self) -> dict[str, Json]:
        """The JSON object, with its kind."""
        # super() without arguments does not work in a class with slots that dataclass made anew
        return {"kind": self.KIND, **Message.to_json(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob(Message):
    """A job to be made, with the id that its asker chose."""

    job: str
    spec: ResolvedSpec

    def __post_init__(self) -> None:
        if JOB_ID.fullmatch(self.job) is None:
            raise ValueError(f"{self.job!r} is no job id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit(Request):
    """Make jobs, all or none."""

    KIND: ClassVar[str] = "submit"

    jobs: tuple[NewJob, ...]
    hold: bool = False

    def __post_init__(self) -> None:
        if not self.jobs:
            raise ValueError("a submit request needs a job id and a resolved spec")
        if len({new.job for new in self.jobs}) < len(self.jobs):
            raise ValueError("a job id is there twice")

    @classmethod
    def read(cls, value: object) -> Self | Unread:
        """Also of the form for one job, which controllers of the release before take too."""
        if isinstance(value, Mapping) and "jobs" not in value:
            value = {**value, "jobs": [{"job": value.get("job"), "spec": value.get("spec")}]}
        return cls._from_fields(value)

    def to_json(self) -> dict[str, Json]:
        """One job alone is written as controllers of the release before take it."""
        found = Request.to_json(self)
        if len(self.jobs) == 1:
            del found["jobs"]
            found |= self.jobs[0].to_json()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest(Request):
    """Base of those about one job."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(JobRequest):
    """End a job."""

    KIND: ClassVar[str] = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold(JobRequest):
    """Keep a job from running."""

    KIND: ClassVar[str] = "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(JobRequest):
    """Let a held job run again."""

    KIND: ClassVar[str] = "release"


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(JobRequest):
    """Change a job's deadline, its priority, or both."""

    KIND: ClassVar[str] = "update"

    sets_deadline: bool = False
    """Not a key of its own in JSON: there the key ``deadline_at`` is present or not."""
    deadline_at: float | None = None
    """None: best effort."""
    deadline_iso: str | None = None
    priority: int | None = None

    def __post_init__(self) -> None:
        if self.deadline_at is not None:
            check_time(self.deadline_at)
        if self.priority is not None:
            check_priority(self.priority)

    @classmethod
    def read(cls, value: object) -> Self | Unread:
        """The deadline changes where its key is present, also to none."""
        if isinstance(value, Mapping):
            value = {**value, "sets_deadline": "deadline_at" in value}
        return cls._from_fields(value)

    def to_json(self) -> dict[str, Json]:
        """The deadline's key is there where it changes."""
        found = Request.to_json(self)
        del found["sets_deadline"]
        return {**found, "deadline_at": self.deadline_at} if self.sets_deadline else found


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale(JobRequest):
    """Give a job a fixed number of members; None: the policy decides."""

    KIND: ClassVar[str] = "scale"

    members: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRequest(Request):
    """Base of those about allocations."""

    allocation: str = ""
    """UUID, its beginning, the resource manager's id, or ``all``."""
    idle: bool = False
    """Those without a job instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain(AllocationRequest):
    """Let allocations take no new job."""

    KIND: ClassVar[str] = "drain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAgent(AllocationRequest):
    """Give allocations back now."""

    KIND: ClassVar[str] = "release_agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge(Request):
    """Remove an ended job, or many at once (``jobs``), of which those that are gone already are no mistake."""

    KIND: ClassVar[str] = "purge"

    job: str | None = None
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePool(Request):
    """Try pools at once that paused after failed starts; without a name all, and the nodes that are kept away from."""

    KIND: ClassVar[str] = "resume_pool"

    pool: str = ""
    """Its key, or how that begins."""


KINDS: dict[str, type[Request]] = {
    cls.KIND: cls for cls in (Submit, Cancel, Hold, Release, Update, Scale, Drain, ReleaseAgent, Purge, ResumePool)
}


def read_request(value: object) -> Request | Unread:
    """A request of any kind, from parsed JSON."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        return Unread(f"unknown request kind {kind!r}; known: {', '.join(sorted(KINDS))}")
    return cls.read(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Message):
    """What became of a request."""

    ok: bool = False
    message: str = ""
    at: float = 0.0
