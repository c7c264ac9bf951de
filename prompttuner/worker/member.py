"""One member's life in a job, in place: it keeps its process and model while generations come and go."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from prompttuner.protocol.jobs import Membership
from prompttuner.worker.elastic.gathering import CLAIM_STAGGER_S
from prompttuner.worker.elastic.group import Group, PeerLost, open_group
from prompttuner.worker.elastic.network import interface_of
from prompttuner.worker.elastic.rendezvous import ALONE, Joined, PlanRendezvous
from prompttuner.worker.member_files import MemberFiles
from prompttuner.worker.membership import propose, read_membership
from prompttuner.worker.pace import Pace
from prompttuner.worker.plan_watch import PlanWatch, plan_for
from prompttuner.worker.signals import LeaveRequested, Signals
from prompttuner.worker.task import Task, agree_on_state

__all__ = ["LeaseEnd", "Member"]

NOTE_S = 0.25
"""So often are numbers for progress.json put together."""
HELD = "held"
"""A plan's reason to stop that is no end: the job will go on from its checkpoint."""
CHANGE, SAVE, LEAVE = 0, 1, 2
"""Flags that travel with each step's sum: a newer plan is ready; save a checkpoint; then one a member: it leaves."""


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """How a lease ended: ``done|left|failed|terminated``, and why."""

    outcome: str
    error: str | None = None
    generation: int = 0
    """The newest generation that the lease knew: an order of no higher one is about the past."""


class Maker(Protocol):
    """Where a member's task comes from."""

    def make(self, plan: Membership, files: MemberFiles, begun: Task | None = None) -> Task:
        """From the newest checkpoint of an earlier generation; without one ``begun``, or anew."""
        ...

    def restore(self, data: bytes) -> Task:
        """From the state that another member packed."""
        ...


class Member:
    """Joins generation after generation and steps in between, until the job is done or goes on without this member."""

    def __init__(
        self,
        rendezvous: PlanRendezvous,
        signals: Signals,
        maker: Maker,
        backend: str,
    ) -> None:
        """``backend``: of the process group, the same on every member."""
        self._rendezvous = rendezvous
        self._settings = rendezvous.settings
        self._signals = signals
        self._maker = maker
        self._backend = backend
        self._task: Task | None = None
        self._longest_step_s = 0.0
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._pace = Pace()
        self.keeps_state = True
        """False where the process ends with the generation, so that the next one begins from a checkpoint."""
        rendezvous.tick = signals.check
        rendezvous.position = lambda: -1 if self._task is None else self._task.position
        rendezvous.before_ready = self._before_ready

    @property
    def agent(self) -> str:
        """Name of the agent that this member works for."""
        return self._rendezvous.agent

    def run(self, plan: Membership) -> LeaseEnd:
        """Work from ``plan`` on until the end of this lease. Errors of the task itself are the caller's."""
        end = self._live(plan)
        newest = read_membership(self._rendezvous.job_dir) or plan
        return replace(end, generation=newest.generation if end.outcome == "left" else self._generation_now(plan))

    def _generation_now(self, plan: Membership) -> int:
        return plan.generation if self._rendezvous.files is None else self._rendezvous.files.generation

    def _live(self, plan: Membership) -> LeaseEnd:
        try:
            while True:
                joined = self._rendezvous.join(plan)
                if joined is None:
                    return self._part(read_membership(self._rendezvous.job_dir) or plan)
                try:
                    following = self.generation(joined)
                except PeerLost as lost:
                    following = self._rendezvous.replan(joined.plan, str(lost))
                if isinstance(following, LeaseEnd):
                    return following
                plan = following
        except LeaveRequested:
            files = self._rendezvous.files
            if files is not None:
                if self._task is not None:
                    self._save(self._task, files)  # others may depend on it: they wait for this member's state
                files.progress("left")
            return LeaseEnd("terminated", "asked to leave")

    # -- beginning ---------------------------------------------------------------------------------------------

    def _before_ready(self, plan: Membership, files: MemberFiles) -> None:
        """Rank 0 begins a new job, lookup included, before the others are asked to wait for it."""
        if self._task is None and (plan.lookup_s > 0 or not plan.previous):
            self._task = self._maker.make(plan, files)

    def _interface(self, members: int) -> str:
        """What the members talk over; one alone needs nothing that others can reach."""
        if members == 1:
            return interface_of(ALONE)
        return self._settings.interface or interface_of(self._rendezvous.address)

    def generation(self, joined: Joined) -> LeaseEnd | Membership:
        """Work in one generation until its end; the plan to go on with, or the end of the lease.

        Raises:
            PeerLost: a member was lost.
        """
        files = self._rendezvous.files
        assert files is not None
        plan = joined.plan
        if joined.rank == 0 and (self._task is None or (self._task.step == 0 and plan.previous)):
            # Those before may have handed over while this member looked a prompt up in vain.
            self._task = self._maker.make(plan, files, self._task)
        group = open_group(
            joined.store,
            joined.rank,
            len(plan.members),
            backend=self._backend,
            interface=self._interface(len(plan.members)),
            timeout_s=max(self._settings.loss_timeout_s, 4 * self._longest_step_s)
            + (0.0 if self.keeps_state else plan.lookup_s),
        )
        try:
            source, state, alike = agree_on_state(group, self._task)
            if state is not None:
                self._task = self._maker.restore(state)
            assert self._task is not None
            self._task.share(alike)
            files.journal(
                g=plan.generation,
                start=self._task.step,
                source=plan.members[source],
                rank=group.rank,
                world=group.world,
                pid=os.getpid(),
            )
            files.progress("running", self._task.noted, members=group.world, start_step=self._task.step)
            self._pace.begin(group.world)
            return self._steps(self._task, group, plan, files)
        finally:
            group.close()

    # -- stepping ----------------------------------------------------------------------------------------------

    def _steps(self, task: Task, group: Group, plan: Membership, files: MemberFiles) -> LeaseEnd | Membership:
        watch = PlanWatch(self._rendezvous, plan)
        noted_at: float | None = None
        while task.outcome is None:
            if task.evaluation_due:
                task.evaluate(group)
                files.note(task.noted)
                continue
            flags = [0.0] * (LEAVE + group.world)
            if group.rank == 0:
                flags[CHANGE] = float(watch.change_is_ready())
            flags[SAVE] = float(self._signals.take_save())
            flags[LEAVE + group.rank] = float(self._signals.leave)
            files.shard(task.step, group.rank, group.world, list(task.sample_ids(task.step))[group.rank :: group.world])
            stepped = task.train_step(group, flags)
            self._longest_step_s = max(self._longest_step_s, stepped.seconds)
            if noted_at is None:
                files.note_now(task.noted, first_step_at=time.time())
            self._pace.step(stepped.seconds)
            if noted_at is None or time.monotonic() - noted_at >= NOTE_S:
                noted_at = time.monotonic()
                files.note(task.noted, self._pace.noted)
            sums = stepped.flags
            if group.rank == 0:
                self._save_if_due(task, files, bool(sums[SAVE]))
            leavers = [plan.members[r] for r in range(group.world) if sums[LEAVE + r]]
            if task.outcome is None and (sums[CHANGE] or leavers):
                return self._change(task, group, plan, files, leavers)
        return self._finish(task, group, plan, files)

    def _save_if_due(self, task: Task, files: MemberFiles, now: bool) -> None:
        steps = task.step - self._saved_step
        late = time.monotonic() - self._saved_at >= self._settings.checkpoint_s
        if now or (steps > 0 and (late or steps >= self._settings.checkpoint_steps)):
            self._save(task, files)

    def _save(self, task: Task, files: MemberFiles) -> None:
        task.save(files.folder)
        self._saved_at, self._saved_step = time.monotonic(), task.step

    # -- changing ----------------------------------------------------------------------------------------------

    def _change(
        self, task: Task, group: Group, plan: Membership, files: MemberFiles, leavers: list[str]
    ) -> LeaseEnd | Membership:
        """All members stand after the same step: save if the state would be lost, then part or move on."""
        files.journal(g=plan.generation, stop=task.step, at=round(time.time(), 4))
        newest = self._plan_without(plan, leavers)
        stays = [] if newest is None or newest.stop else [m for m in plan.members if m in newest.members]
        if group.rank == 0 and (self.agent not in stays or not self.keeps_state):
            self._save(task, files)
        if group.rank == 0 and newest is not None and newest.stop not in {None, HELD}:
            files.done(task.write_result(files.folder, "stopped"))
        if self.agent in leavers:
            files.progress("left")
            return LeaseEnd("terminated", "asked to leave")
        assert newest is not None
        phase = "moved" if self.agent in newest.members else "left"
        files.progress(phase, task.noted, self._pace.noted)
        return newest

    def _plan_without(self, plan: Membership, leavers: list[str]) -> Membership | None:
        """The newest plan above ``plan``; if it has members who leave, one of those who stay plans without them."""
        job_dir, begin = self._rendezvous.job_dir, time.monotonic()
        while True:
            newest = read_membership(job_dir) or plan
            unplanned = [m for m in newest.members if m in leavers]
            if newest.generation > plan.generation and not unplanned:
                return newest
            stayers = [m for m in plan.members if m not in leavers]
            if self.agent in leavers:
                return newest if stayers else None
            # The first who stays plans at once; the next only if that one died just now.
            if unplanned and time.monotonic() - begin >= CLAIM_STAGGER_S * stayers.index(self.agent):
                propose(job_dir, newest.without(unplanned, by=self.agent))
            else:
                time.sleep(0.01)

    def _part(self, plan: Membership) -> LeaseEnd:
        """The job goes on without this member, or is told to stop."""
        files = self._rendezvous.files
        reason = self._rendezvous.reason or None
        if files is not None:
            files.progress("left", reason=reason)
        return LeaseEnd("left", reason or plan.stop)

    def _finish(self, task: Task, group: Group, plan: Membership, files: MemberFiles) -> LeaseEnd:
        """One member writes the result; nobody goes before it has, so that another can if that one is lost now.

        A result counts in the newest generation only, so one that has been planned meanwhile gets it: from a member of
        both. If there is none, its members find the checkpoint, and in it that the job is done.
        """
        if group.rank == 0:
            self._save(task, files)
        known = torch.zeros(1, dtype=torch.float64)
        if group.rank == 0:
            known[0] = (read_membership(self._rendezvous.job_dir) or plan).generation
        group.all_reduce_(known)
        newest = plan_for(self._rendezvous.job_dir, int(known), self._settings.loss_timeout_s) or plan
        if newest.stop is not None or newest.generation < int(known):
            newest = plan
        writer = next((member for member in plan.members if member in newest.members), None)
        if writer == self.agent and newest.generation > plan.generation:
            files.progress("moved")
            files = self._rendezvous.enter(newest)
        if writer == self.agent and task.outcome is not None:
            files.done(task.write_result(files.folder, task.outcome))
        group.all_reduce_(known)
        files.progress("done", task.noted, self._pace.noted)
        return LeaseEnd("done")
