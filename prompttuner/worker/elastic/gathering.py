"""How members of a generation find each other, and who goes on after a loss: files only, no torch, no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prompttuner.errors import StateError
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.jobs import ENDED_PHASES, Membership, Progress
from prompttuner.worker.membership import propose, read_membership, read_progress

__all__ = [
    "GenerationBroken",
    "JobDone",
    "Superseded",
    "after_loss",
    "await_predecessors",
    "gather",
    "not_ready",
    "pauses",
]

HERE = frozenset({"ready", "running"})
"""Phases of a member that has come to a generation."""
CLAIM_STAGGER_S = 0.5
"""Survivors claim in the order of their ranks, this far apart: the first is enough, the others stand by."""

CONTROLLER_S = 0.5
"""Even when all survivors are known at once (a connection broke, nobody died), a controller may be first so long."""


class Superseded(Exception):
    """A newer plan has come; it is in ``plan``."""

    def __init__(self, plan: Membership) -> None:
        super().__init__(f"generation {plan.generation} has been planned")
        self.plan = plan


class JobDone(Exception):
    """A member has written the job's result: there is nothing left to come for."""


class GenerationBroken(Exception):
    """A member of this generation could not talk to the others."""


def pauses(patient_after_s: float = 2.0) -> Iterator[None]:
    """Sleep between polls: 10 ms at first (a resize should be short), 100 ms later (somebody is slow or dead)."""
    begin = time.monotonic()
    while True:
        yield
        time.sleep(0.01 if time.monotonic() - begin < patient_after_s else 0.1)


def _phase(job_dir: Path, generation: int, agent: str) -> str:
    progress = read_progress(job_dir, generation, agent)
    return "" if progress is None else progress.phase


def _beat(progress: Progress | None) -> int | None:
    return None if progress is None else progress.beat


def not_ready(job_dir: Path, plan: Membership, running: tuple[str, ...]) -> list[str]:
    """Members of a planned generation who are not running now and have not come to it yet."""
    return [m for m in plan.members if m not in running and _phase(job_dir, plan.generation, m) not in HERE]


def _check_newer(job_dir: Path, plan: Membership) -> None:
    newest = read_membership(job_dir)
    if newest is not None and newest.generation > plan.generation:
        raise Superseded(newest)


class _Quiet:
    """How long nothing of a set of progress files has changed, by our own clock."""

    def __init__(self) -> None:
        self._seen: object = None
        self._since = time.monotonic()

    def seconds(self, seen: object) -> float:
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since


def _last_signs(job_dir: Path, plan: Membership, agents: list[str]) -> tuple[object, ...]:
    """Heartbeats of agents in this generation and in the one before: a member may still be on its way from there."""
    generations = [plan.generation, *(generation for generation, _ in plan.previous[-1:])]
    return tuple(_beat(read_progress(job_dir, g, agent)) for g in generations for agent in agents)


def gather(job_dir: Path, plan: Membership, agent: str, settings: ElasticSettings, tick: Callable[[], None]) -> None:
    """Wait until all members of ``plan`` have come. The caller has said ``ready`` in its own progress.

    A member that neither comes nor shows a sign of life for ``join_timeout_s``, or that has left, is left out by the
    first of those who came. ``tick`` is called at each poll and may raise (to leave on a signal).

    Raises:
        Superseded: there is a newer plan.
        JobDone: the job ended in the meantime.
        GenerationBroken: somebody came, and lost the others again.
    """
    quiet = _Quiet()
    for _ in pauses():
        tick()
        _check_newer(job_dir, plan)
        phases = {member: _phase(job_dir, plan.generation, member) for member in plan.members}
        if "done" in phases.values():
            raise JobDone
        if "broken" in phases.values():
            raise GenerationBroken(f"generation {plan.generation} broke before all had come")
        absent = [member for member, phase in phases.items() if phase not in HERE]
        if not absent:
            return
        gone = [member for member in absent if phases[member] in ENDED_PHASES]
        if quiet.seconds(_last_signs(job_dir, plan, absent)) > settings.join_timeout_s:
            gone = absent
        if gone and agent == next(member for member in plan.members if member not in absent):
            propose(job_dir, plan.without(gone, by=agent))


def await_predecessors(job_dir: Path, plan: Membership, settings: ElasticSettings, tick: Callable[[], None]) -> None:
    """When nobody of the members before stays, wait until they have handed over (saved and left) or are dead.

    Raises:
        Superseded: there is a newer plan.
    """
    for generation, members in reversed(plan.previous):
        if set(members) & set(plan.members):
            return
        if not any(_phase(job_dir, generation, member) for member in members):
            continue  # planned, but never began: those before it may still run
        quiet = _Quiet()
        for _ in pauses():
            tick()
            _check_newer(job_dir, plan)
            progress = [read_progress(job_dir, generation, member) for member in members]
            if all(p is None or p.phase in ENDED_PHASES for p in progress):
                return
            if quiet.seconds(tuple(_beat(p) for p in progress)) > settings.loss_timeout_s:
                return


def after_loss(
    job_dir: Path,
    plan: Membership,
    agent: str,
    settings: ElasticSettings,
    tick: Callable[[], None],
    most: int | None = None,
) -> Membership:
    """The plan to go on with after a generation broke. The caller has said ``broken`` in its own progress.

    Whoever says ``broken`` too is a survivor. Who does not and shows no sign of life for ``grace_s``, or shows some but
    does not notice the loss for ``loss_timeout_s``, is left out. If no controller has planned anew by then, the
    survivor of the lowest rank claims the next generation with the survivors (at most ``most``) as members, the others
    after it in turn.

    Raises:
        StateError: no plan could be made (this agent is no member of ``plan``).
    """
    rank = plan.rank_of(agent)
    if rank is None:
        raise StateError(f"agent {agent} is not a member of generation {plan.generation}")
    begin = time.monotonic()
    silence = {member: _Quiet() for member in plan.members}
    settled_since: float | None = None
    for _ in pauses():
        tick()
        newest = read_membership(job_dir)
        if newest is not None and newest.generation > plan.generation:
            return newest
        progress = {m: read_progress(job_dir, plan.generation, m) for m in plan.members}
        alive = [m for m, said in progress.items() if m == agent or (said is not None and said.phase == "broken")]
        silent = {m: silence[m].seconds(_beat(progress[m])) for m in plan.members if m not in alive}
        waited = time.monotonic() - begin
        settled = all(s > settings.grace_s or waited > settings.loss_timeout_s for s in silent.values())
        settled_since = (settled_since or waited) if settled else None
        turn = CLAIM_STAGGER_S * alive.index(agent)
        if settled_since is not None and waited >= settled_since + turn and waited >= CONTROLLER_S:
            propose(job_dir, plan.without([*silent, *alive[most:]] if most else silent, by=agent))
    raise AssertionError("unreachable")
