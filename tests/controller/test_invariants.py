"""Whatever happens, in whatever order: nothing lost, nothing twice, nothing left behind."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuse import FullDisk, Fuse, Killed
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lab import Lab, scratch_root
from sqlalchemy import select
from tally import tally

from prompttuner.db.queries import allocations, events, jobs
from prompttuner.db.tables.models import Job
from prompttuner.errors import DatabaseError
from prompttuner.files import read_json
from prompttuner.slurm.words import Native
from prompttuner.states import JOB_ENDED, JobState

EXAMPLES = int(os.environ.get("PROMPTTUNER_EXAMPLES", "200"))
STEPS = int(os.environ.get("PROMPTTUNER_STEPS", "30"))
SOAK = "PROMPTTUNER_EXAMPLES" in os.environ
"""`make soak` seeks new examples."""
HEAL_S = 600


def check_now(lab: Lab) -> None:
    """What must hold at every moment."""
    assert max(Counter(lab.site.submitted).values(), default=0) <= 1, "a uuid was submitted twice"
    assert max(Counter(lab.site.admitted).values(), default=0) <= 1, "a uuid was admitted twice"
    assert lab.site.busy_gpus <= lab.site.gpus
    with lab.store.read() as session:
        rows = list(session.scalars(select(Job)))
        members = Counter(member for job in rows for member in job.members)
        assert max(members.values(), default=0) <= 1, "an agent works for two jobs"
        for job in rows:
            if job.state in JOB_ENDED or job.state in {JobState.QUEUED, JobState.HELD}:
                assert not job.members, f"{job.id} is {job.state} and has members"
            if job.state == JobState.DONE:
                result = read_json(lab.spool.job(job.id) / "result" / "result.json")
                assert result == {"prompt": f"prompt of {job.id}", "step": json.loads(job.spec["note"])["ita"]}
        live = allocations.load_live(session)
        assert sum(a.gpus for a in live) <= lab.settings.local.slots
        latest: dict[str, str] = {}
        for event in events.read_after(session, limit=100_000):
            if event.job_id and event.kind.startswith("job."):
                latest[event.job_id] = event.data.get("state") if event.kind == "job.submitted" else event.kind[4:]
        assert latest == {job.id: job.state for job in rows}, "an event is missing"


def check_end(lab: Lab, known: dict[str, int | None]) -> None:
    """After all faults have passed, every job ends as it should, and nothing is left behind."""
    for _ in range(HEAL_S // 4):
        lab.site.step(4.0)
        lab.tick()
        if not lab.store.query(jobs.load_active) and not lab.site.running():
            break
    check_now(lab)
    for job_id, ita in known.items():
        job = lab.job(job_id)
        if ita is None or job.state == JobState.CANCELLED:
            assert job.state in {JobState.CANCELLED, JobState.DONE}
        elif job.state == JobState.FAILED:
            assert "crashed" in (job.error or "")
        else:
            assert (job.state, job.ita) == (JobState.DONE, ita), f"{job_id}: {job.state}, {job.note}"
    lab.run(lab.settings.idle_limit_s + 60, every=15.0)
    assert [a for a in lab.site.allocations.values() if a.state != Native.ENDED] == [], "an allocation is left behind"
    assert lab.store.query(allocations.load_live) == []


class Site(RuleBasedStateMachine):
    """Users, faults and ticks in any order."""

    @initialize(policy=st.sampled_from(["edf", "prompttuner"]))
    def begin(self, policy: str) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=scratch_root(Path(tempfile.gettempdir())))
        self.lab = Lab(Path(self.folder.name), policy, local={"slots": 3}, max_submissions_per_minute=600)
        self.known: dict[str, int | None] = {}
        self.notices: list[Any] = []
        self.crashes = 0
        self.done: Counter[str] = Counter()

    @rule(ita=st.integers(5, 80), deadline=st.one_of(st.none(), st.integers(10, 300)), gpus=st.integers(1, 3))
    def submit(self, ita: int, deadline: int | None, gpus: int) -> None:
        if len(self.known) < 6:
            self.known[self.lab.submit(ita, deadline, max_gpus=gpus)] = ita

    @rule(seconds=st.integers(1, 5))
    def go_on(self, seconds: int) -> None:
        self.lab.run(seconds)

    @rule(seconds=st.integers(1, 20))
    def nobody_ticks(self, seconds: int) -> None:
        for _ in range(seconds):
            self.lab.site.step(1.0)

    @rule(after=st.integers(0, 40))
    def tick_is_killed(self, after: int) -> None:
        self.lab.site.step(1.0)
        try:
            with Fuse(after).lit(self.lab.site):
                self.lab.tick()
        except Killed:
            self.done["ticks_killed"] += 1
            self.lab.crash()

    @rule(after=st.integers(0, 40))
    def disk_is_full(self, after: int) -> None:
        self.lab.site.step(1.0)
        try:
            with FullDisk(after).lit(self.lab.site):
                self.lab.tick()
        except (OSError, DatabaseError):
            self.done["ticks_with_a_full_disk"] += 1

    @precondition(lambda self: self.known)
    @rule(which=st.integers(0, 9), kind=st.sampled_from(["cancel", "hold", "release", "scale"]), n=st.integers(1, 3))
    def user_changes_mind(self, which: int, kind: str, n: int) -> None:
        job = list(self.known)[which % len(self.known)]
        reply = self.lab.ask(kind, job=job, **({"members": n} if kind == "scale" else {}))
        if kind == "cancel" and reply["ok"]:
            self.known[job] = None

    @rule(which=st.integers(0, 9), how=st.sampled_from(["preempt", "grace", "kill", "node", "worker", "scancel"]))
    def something_dies(self, which: int, how: str) -> None:
        running = self.lab.site.running()
        if not running:
            return
        self.done[f"died_{how}"] += 1
        victim = running[which % len(running)]
        if how == "preempt":
            self.lab.site.preempt(victim)
        elif how == "grace":
            self.lab.site.preempt(victim, grace=True)
        elif how == "kill":
            self.lab.site.kill(victim)
        elif how == "node":
            self.notices.append(self.lab.site.lose_node(victim))
        elif how == "worker" and victim.zygote is not None and self.crashes < 2:
            self.crashes += 1
            victim.zygote.crash()
        elif how == "scancel" and not self.lab.site.away:
            self.lab.site.cancel([victim.native_id])

    @rule()
    def slurm_notices_lost_nodes(self) -> None:
        while self.notices:
            self.notices.pop()()

    @rule(how=st.sampled_from(["refuse", "lose_answers", "lose_submissions"]))
    def a_submission_goes_wrong(self, how: str) -> None:
        setattr(self.lab.site, how, 1)
        self.done["submissions_gone_wrong"] += 1

    @rule(how=st.sampled_from(["well", "away", "nothing", "nonsense", "accounting"]))
    def slurm_answers(self, how: str) -> None:
        self.done[f"slurm_{how}"] += 1
        self._slurm_answers(how)

    def _slurm_answers(self, how: str) -> None:
        site = self.lab.site
        site.away, site.accounting_away = how == "away", how in {"accounting", "nothing"}
        site.squeue_says = how if how in {"nothing", "nonsense"} else "the truth"

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "lab"):
            self.done["steps"] += 1
            check_now(self.lab)

    def teardown(self) -> None:
        if not hasattr(self, "lab"):
            return
        try:
            site = self.lab.site
            site.refuse, site.lose_answers, site.lose_submissions = 0, 0, 0
            self._slurm_answers("well")
            self.slurm_notices_lost_nodes()
            self.lab.tick()
            for job_id in self.known:
                if self.lab.job(job_id).state == JobState.HELD:
                    self.lab.ask("release", job=job_id)
            check_end(self.lab, self.known)
            tally(examples=1, jobs=len(self.known), **self.done)
        finally:
            self.lab.close()
            self.folder.cleanup()


TestSite = Site.TestCase
TestSite.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    derandomize=not SOAK,  # the same examples in every CI run
    phases=[Phase.explicit, Phase.reuse, Phase.generate, *([] if SOAK else [Phase.shrink])],  # a seed repeats a soak
)
TestSite.pytestmark = [pytest.mark.timeout(1500)]


def scenario(lab: Lab, fuse: Fuse) -> dict[str, int | None]:
    """Two jobs, one cancelled, an agent killed: every tick under the fuse, a new controller after each kill."""
    known: dict[str, int | None] = {lab.submit(60, max_gpus=2): 60, lab.submit(30): 30, lab.submit(300): 300}
    cancelled, full_ticks = list(known)[2], 0
    for second in range(24):
        lab.site.step(2.0)
        if second == 6:
            leave_cancel(lab, cancelled)
            known[cancelled] = None
        if second == 9 and lab.site.running():
            lab.site.kill(lab.site.running()[0])
        try:
            with fuse.lit(lab.site):
                lab.tick()
        except Killed:
            fuse.burn_at = None
            lab.crash()
        except (OSError, DatabaseError):  # the same controller goes on, as a daemon does
            full_ticks += 1
            if full_ticks == FULL_TICKS:
                fuse.burn_at = None
    return known


def leave_cancel(lab: Lab, job: str) -> None:

    lab.leave("cancel", job=job)


@contextlib.contextmanager
def new_lab() -> Iterator[Lab]:
    settings = {"local": {"slots": 3}, "max_submissions_per_minute": 600, "idle_limit_s": 20.0}
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(Path(tempfile.gettempdir()))) as folder,
        Lab(Path(folder), "edf", **settings) as lab,
    ):
        yield lab


@functools.cache
def side_effects() -> list[str]:
    """Names of all side effects of the undisturbed scenario, in order."""
    fuse = Fuse()
    with new_lab() as lab:
        scenario(lab, fuse)
    return fuse.names


PARTS = 8
FULL_TICKS = 3
"""So many ticks find the disk full before somebody makes room."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_tick_killed_between_any_two_side_effects_is_mended_by_the_next(part: int) -> None:
    total = len(side_effects())
    assert total > 100
    for burn_at in range(part, total, PARTS * int(os.environ.get("PROMPTTUNER_FUSE_STRIDE", "1"))):
        with new_lab() as lab:
            check_end(lab, scenario(lab, Fuse(burn_at)))


@pytest.mark.timeout(900)
def test_a_disk_that_is_full_for_a_while_is_mended_by_the_same_controller() -> None:
    stopped = {"before transact", "before write_bytes", "before link"}
    writes = [number for number, name in enumerate(side_effects()) if name in stopped]
    for burn_at in writes[:: 8 * int(os.environ.get("PROMPTTUNER_FUSE_STRIDE", "1"))]:
        with new_lab() as lab:
            check_end(lab, scenario(lab, FullDisk(burn_at)))
