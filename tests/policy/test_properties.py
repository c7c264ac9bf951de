"""What must hold of every policy, whatever the site and the jobs: checked on each plan of random simulations."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from prompttuner.policy import get
from prompttuner.policy.contract.plan import Assign, Demote, Reject, Release, Request, Restore, Stop, SwitchModel
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase
from prompttuner.profiles import stated
from prompttuner.sim import SimOptions, simulate
from prompttuner.trace.job import TraceJob

POLICIES = ["edf", "infless", "sbatch", "prompttuner", "elasticflow", "elasticflow-fixed"]
QUICK = settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
)


NO_GRAMMAR = re.compile(r"\b1 (warm )?(GPU|agent|job|instance|member)s\b|\(s\)")


class Checked:
    """Wraps a policy and checks each of its plans against the snapshot it was made from.

    ``allocations``: the site's limit; ``stingy``: of each three ticks one may ask for no allocation, one for one.
    """

    def __init__(self, inner, allocations=math.inf, stingy=False):
        self.inner, self.name, self.plans = inner, inner.name, 0
        self.allocations, self.stingy = allocations, stingy

    def plan(self, snapshot):
        limits = snapshot.limits
        snapshot.limits = replace(limits, allocations=self.allocations)
        if self.stingy:
            snapshot.limits.requests_now = (0, 1, math.inf)[self.plans % 3]
        plan = self.checked(snapshot)
        if self.stingy:  # as a live controller, which looks again at the next tick
            plan.wake_at = min(plan.wake_at, snapshot.now + snapshot.tick_s)
        snapshot.limits = limits
        return plan

    def checked(self, snapshot):
        plan = self.inner.plan(snapshot)
        again = self.inner.plan(snapshot)
        assert plan.actions == again.actions and plan.wake_at == again.wake_at
        assert dict(plan.notes) == dict(again.notes)
        check(plan, snapshot)
        self.plans += 1
        return plan


def is_well_said(words):
    return words.strip() and not NO_GRAMMAR.search(words)


def check(plan, snapshot):
    jobs, agents = snapshot.jobs, snapshot.agents
    job_row = {name: i for i, name in enumerate(jobs.id)}
    agent_row = {name: i for i, name in enumerate(agents.id)}
    given_to, gone, assigned = {}, set(), set()
    requests = 0
    for action in plan.actions:
        assert is_well_said(str(action.reason)), action
        if isinstance(action, Assign):
            row = job_row[action.job]
            assert action.job not in assigned, "a job is assigned twice"
            assigned.add(action.job)
            assert jobs.phase[row] != JobPhase.HELD
            n = len(action.agents)
            assert n == 0 or jobs.min_gpus[row] <= n <= jobs.max_gpus[row]
            for name in action.agents:
                a = agent_row[name]
                assert given_to.setdefault(name, action.job) == action.job, "a GPU is given twice"
                mine = agents.phase[a] == AgentPhase.BUSY and agents.job[a] == row
                assert agents.phase[a] == AgentPhase.WARM or mine
                assert agents.pool[a] == jobs.pool[row]
        elif isinstance(action, Release):
            assert agents.phase[agent_row[action.agent]] in (
                AgentPhase.REQUESTED,
                AgentPhase.STARTING,
                AgentPhase.WARM,
            )
            assert action.agent not in gone
            gone.add(action.agent)
        elif isinstance(action, SwitchModel):
            assert agents.phase[agent_row[action.agent]] == AgentPhase.WARM
            assert action.agent not in gone and 0 <= action.pool < len(snapshot.pools)
            gone.add(action.agent)
        elif isinstance(action, Request):
            requests += 1
        else:
            assert isinstance(action, Demote | Restore | Reject | Stop) and action.job in job_row
    assert not gone & set(given_to), "an agent is both released and given"
    limits = snapshot.limits
    assert requests <= limits.requests_now
    assert int(agents.gpus.sum()) + requests <= limits.gpus or requests == 0
    assert agents.n + requests <= limits.allocations or requests == 0
    for note in plan.notes.values():
        assert is_well_said(str(note)), note
    assert plan.wake_at > snapshot.now or math.isinf(plan.wake_at) or plan.actions


@st.composite
def traces(draw):
    n = draw(st.integers(1, 25))
    jobs = []
    for i in range(n):
        low = draw(st.sampled_from([1, 1, 1, 2]))
        submit = draw(st.floats(0, 300))
        work = draw(st.floats(5, 400))
        multiple = draw(st.sampled_from([0.1, 0.5, 1.0, 1.5, math.inf]))
        jobs.append(
            TraceJob(
                id=f"j{i}",
                submit_s=submit,
                llm=draw(st.sampled_from(["gpt2-base", "gpt2-large", "vicuna-7b"])),
                iters=work / 0.5,
                step_s=0.5,
                deadline_s=submit + multiple * work,
                min_gpus=low,
                max_gpus=draw(st.integers(low, 8)),
                bank_factor=draw(st.floats(0.2, 1.2)),
                priority=draw(st.integers(0, 2)),
                stop_on_miss=draw(st.sampled_from([False, False, True])),
            )
        )
    return jobs


@st.composite
def sites(draw):
    return SimOptions(
        gpus=draw(st.integers(2, 12)),
        tick_s=draw(st.sampled_from([0.5, 1.0, 10.0])),
        bank=draw(st.booleans()),
        warm_pool=draw(st.booleans()),
        predict_sigma=draw(st.sampled_from([0.0, 0.3])),
        start_sigma=draw(st.sampled_from([0.0, 0.3])),
        losses_per_gpu_hour=draw(st.sampled_from([0.0, 0.0, 10.0])),
        walltime_s=draw(st.sampled_from([math.inf, 500.0])),
        idle_limit_s=draw(st.sampled_from([60.0, 600.0])),
        horizon_s=1e6,
    )


@st.composite
def regular_traces(draw):
    """Bursts at regular times, their jobs in need of warm GPUs: what is warmed ahead."""
    every, jobs = draw(st.sampled_from([150.0, 400.0])), []
    for burst in range(draw(st.integers(4, 6))):
        for i in range(draw(st.integers(1, 4))):
            submit, work = burst * every + draw(st.floats(0, 15)), draw(st.floats(5, 80))
            multiple = draw(st.sampled_from([0.3, 0.8, 1.2, math.inf]))
            llm = draw(st.sampled_from(["gpt2-large", "gpt2-large", "vicuna-7b"]))
            job = TraceJob(f"j{burst}-{i}", submit, llm, work / 0.5, 0.5, deadline_s=submit + multiple * work)
            jobs.append(replace(job, max_gpus=draw(st.integers(1, 8)), bank_factor=draw(st.floats(0.2, 1.2))))
    return jobs


@given(jobs=regular_traces(), site=sites(), allocations=st.sampled_from([math.inf, 3]), stingy=st.booleans())
@QUICK
def test_plans_that_warm_ahead_are_legal(jobs, site, allocations, stingy):
    policy = Checked(get("prompttuner"), allocations, stingy)
    result = simulate(jobs, stated({job.llm for job in jobs}), policy, site)
    assert all(math.isfinite(job.end_s) for job in result.jobs) and policy.plans == result.plans
    limits = min(site.gpus, allocations)
    assert all(sum(row[1:]) <= limits for row in result.usage)


@pytest.mark.parametrize("name", POLICIES)
@given(jobs=traces(), site=sites(), allocations=st.sampled_from([math.inf, 2, 3, 5]), stingy=st.booleans())
@QUICK
def test_every_plan_is_legal_and_every_job_ends(name, jobs, site, allocations, stingy):
    profiles = stated({job.llm for job in jobs})
    policy = Checked(get(name), allocations, stingy)
    result = simulate(jobs, profiles, policy, site)
    ended = [math.isfinite(job.end_s) or job.stopped or job.rejected for job in result.jobs]
    assert all(ended) and len(ended) == len(jobs)
    assert policy.plans == result.plans
    assert result.cost_s <= site.gpus * result.end_s + 1e-6
    stoppable = {job.id for job in jobs if job.stop_on_miss}
    assert all(job.id in stoppable for job in result.jobs if job.stopped)


@given(jobs=traces(), site=sites(), seed=st.integers(0, 3))
@QUICK
def test_switched_off_rules_stay_legal(jobs, site, seed):
    rules = ["bank", "warm_pool", "delay", "resize", "rescue", "boost", "forecast", "prewarm", "switch"]
    off = {rule: bool(np.random.default_rng([seed, i]).integers(0, 2)) for i, rule in enumerate(rules)}
    result = simulate(jobs, stated({job.llm for job in jobs}), Checked(get("prompttuner", **off)), site)
    assert len(result.jobs) == len(jobs)
    if not off["resize"]:
        assert sum(job.pauses for job in result.jobs) == 0


class Restless:
    """Wraps a policy and remembers when each job was paused by it and begun again."""

    def __init__(self, inner):
        self.inner, self.name = inner, inner.name
        self.paused, self.away = {}, []

    def plan(self, snapshot):
        plan = self.inner.plan(snapshot)
        for action in plan.actions:
            if isinstance(action, Assign) and not action.agents:
                self.paused[action.job] = snapshot.now
            elif isinstance(action, Assign) and action.job in self.paused:
                row = snapshot.jobs.id.index(action.job)
                resize = snapshot.pools[int(snapshot.jobs.pool[row])].resize_s
                rest = 2 * (resize + snapshot.tick_s)
                self.away.append((snapshot.now - self.paused.pop(action.job), rest))
        return plan


@given(jobs=traces(), site=sites())
@QUICK
def test_no_pause_goes_straight_back(jobs, site):
    policy = Restless(get("prompttuner"))
    simulate(jobs, stated({job.llm for job in jobs}), policy, site)
    assert all(away >= rest - 1e-6 for away, rest in policy.away)
