"""Tell the user of a deadline that is missed or in danger: command, webhook, mail; each at least once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from prompttuner.controller.act.transaction import Tx
from prompttuner.controller.resources import Resources
from prompttuner.controller.upkeep.hooks import HOOKS, HookBody, run_hook
from prompttuner.db.queries import events
from prompttuner.db.queries import jobs as job_rows
from prompttuner.db.queries.events import NewEvent
from prompttuner.db.tables.models import Job
from prompttuner.protocol.files import understood
from prompttuner.spec.when import iso
from prompttuner.states import JOB_ENDED

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Deadlines", "Key", "Message"]

MISSED = "deadline.missed"
ENDANGERED = "deadline.endangered"
TOLD = "hook.told"
FAILED = "hook.failed"
AT_ONCE_S = 15.0
"""After so long the rest is told in the next tick."""
AGAIN_S = 60.0
"""No hook is run so soon after one has failed: one that hangs must not hold up every tick."""
TRIES = 5
LOOK_BACK_S = 86400.0
"""A new controller tells what a killed one did not get to, if it is no older."""

Key = tuple[str, str, float | None]
"""Job, kind of event, deadline: an event of its own."""


@dataclass(slots=True)
class Message:
    """One event, and which hooks must still be told of it."""

    at: float
    owed: list[str]
    body: HookBody | None = None
    tries: int = 0
    failed_at: float = float("-inf")


class Deadlines:
    """Records, and tells of, deadlines that are missed or out of reach."""

    def __init__(self, resources: Resources) -> None:
        self._res = resources
        self._told: dict[Key, Message] | None = None
        """What was recorded, and who must still be told; None until read from the events."""
        self._dated: frozenset[str] | None = None
        """Active jobs with a deadline in the last tick; None: look for what ended unseen."""

    def tell(self, jobs: Sequence[Job]) -> int:
        """Record, and tell of, what has happened since the last tick; returns how many events were recorded.

        Each event is committed with the hooks that it is owed to before any of them is run, and what became of them
        afterwards: a controller that is killed in between leaves them owed, and the next one runs them again.

        Args:
            jobs: those that have not ended.
        """
        now = self._res.now()
        dated = [job for job in jobs if job.deadline_at is not None]
        late = [(job, MISSED) for job in dated if now > float(job.deadline_at or 0.0)]
        unsure = [(job, ENDANGERED) for job in dated if job.best_effort and now <= float(job.deadline_at or 0.0)]
        ended = [(job, MISSED) for job in self._ended(dated)]
        if self._told is None:
            self._told = self._res.state.query(lambda session: _read(session, now - LOOK_BACK_S))
        known = self._told
        news = [(job, kind) for job, kind in [*late, *unsure, *ended] if (job.id, kind, job.deadline_at) not in known]
        if news:
            known.update(self._record(news))
        self._tell(known)
        return len(news)

    def _ended(self, dated: Sequence[Job]) -> list[Job]:
        """Jobs that have ended without having met their deadline: asked for when one of the last tick's is gone.

        A job may miss its deadline and end between two ticks, or be stopped by the tick that sees it miss.
        """
        present = frozenset(job.id for job in dated)
        before, self._dated = self._dated, present
        if before is not None and before <= present:
            return []
        since = self._res.now() - LOOK_BACK_S
        return self._res.state.query(lambda session: job_rows.missed_since(session, since))

    def _record(self, news: Sequence[tuple[Job, str]]) -> dict[Key, Message]:
        res = self._res
        hooks = [name for name in HOOKS if getattr(res.settings, name)]
        messages = {
            (job.id, kind, job.deadline_at): Message(res.now(), list(hooks), _body(job, kind) if hooks else None)
            for job, kind in news
        }

        def work(session: Session) -> None:
            tx = Tx(session, res.now())
            for job, kind in news:
                message = messages[job.id, kind, job.deadline_at]
                told = {} if message.body is None else message.body.to_json()
                owed = {"owed": message.owed, "message": told} if hooks else {}
                tx.event(kind, job=job, cause=_cause(job, kind), data={"deadline_at": job.deadline_at, **owed})

        res.state.write(work)
        return messages

    def _tell(self, known: dict[Key, Message]) -> None:
        """Run the hooks that are owed, those that failed least first; each outcome is committed at once.

        Each commit renews the ownership, however long hooks take.
        """
        res, began = self._res, time.monotonic()
        now = res.now()
        owed = [
            (key, one) for key, one in known.items() if one.owed and one.tries < TRIES and now - one.at < LOOK_BACK_S
        ]
        if any(0 <= now - one.failed_at < AGAIN_S for _, one in owed):
            return
        for key, message in sorted(owed, key=lambda pair: (pair[1].tries, pair[1].at)):
            if time.monotonic() - began > AT_ONCE_S:
                return
            failed = {}
            for name in message.owed:
                setting = getattr(res.settings, name)  # one that is no longer set is owed nothing
                problem = run_hook(name, setting, message.body) if setting and message.body is not None else None
                if problem is not None:
                    failed[name] = problem
            told = [name for name in message.owed if name not in failed]
            res.state.write(partial(_note, at=res.now(), key=key, told=told, failed=failed))
            message.owed = list(failed)
            message.body = message.body if failed else None
            for name, problem in failed.items():
                res.warn(f"nobody could be told of {key[1]} of {key[0]} by {name}: {problem}")
            if failed:
                message.tries, message.failed_at = message.tries + 1, now
                return


def _note(session: Session, *, at: float, key: Key, told: Sequence[str], failed: dict[str, str]) -> None:
    job_id, kind, deadline_at = key
    about = {"of": kind, "deadline_at": deadline_at}
    news = []
    if told:
        news.append(NewEvent(TOLD, f"{kind} by {', '.join(told)}", job_id, data={**about, "hooks": list(told)}))
    if failed:
        cause = "; ".join(f"{name}: {problem}" for name, problem in failed.items())
        news.append(NewEvent(FAILED, cause, job_id, data={**about, "hooks": list(failed)}))
    events.append(session, news, at)


def _read(session: Session, since: float) -> dict[Key, Message]:
    """Events of the last day, and, whatever their age, those of jobs that had not ended before."""
    known: dict[Key, Message] = {}
    for job_id, kind, at, data in events.of_current_jobs(session, [MISSED, ENDANGERED, TOLD, FAILED], since):
        about = data or {}
        key = (str(job_id), str(about.get("of", kind)), about.get("deadline_at"))
        if kind in {MISSED, ENDANGERED}:
            known[key] = Message(at, list(about.get("owed", [])), understood(HookBody.read(about.get("message"))))
        elif key in known:
            message = known[key]
            if kind == TOLD:
                message.owed = [name for name in message.owed if name not in about["hooks"]]
            else:
                message.tries, message.failed_at = message.tries + 1, at
    return known


def _cause(job: Job, kind: str) -> str:
    if kind == ENDANGERED:
        return f"the deadline will probably be missed: {job.note}"
    return (
        "the deadline has passed" if job.state not in JOB_ENDED else f"the job has ended without meeting it: {job.note}"
    )


def _body(job: Job, kind: str) -> HookBody:
    return HookBody(
        event=kind,
        job=job.id,
        name=job.name,
        owner=job.owner,
        deadline=None if job.deadline_at is None else iso(job.deadline_at),
        step=job.step,
        state=str(job.state),
        note=job.note,
    )
