"""The simulated site: times and costs by hand, determinism, losses, and what it refuses."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from prompttuner.errors import SpecError, StateError
from prompttuner.policy import get
from prompttuner.policy.contract.plan import Assign, Plan, Release, Request, SwitchModel
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase, PoolProfile, Snapshot
from prompttuner.profiles import stated
from prompttuner.sim import SimOptions, simulate
from prompttuner.sim.bound import bound
from prompttuner.trace.generate import Workload, generate
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple

PROFILE = PoolProfile(
    name="llm",
    speedup=((1, 1.0), (2, 1.9), (4, 3.6)),
    step_s=1.0,
    queue_s=2.0,
    start_s=10.0,
    warm_s=1.0,
    resize_s=3.0,
    switch_s=5.0,
    lookup_s=4.0,
)
SITE = SimOptions(gpus=4, tick_s=1.0, spool_s=0.5)


def job(name="a", submit=0.0, iters=100.0, deadline=math.inf, **given):
    return TraceJob(id=name, submit_s=submit, llm="llm", iters=iters, step_s=1.0, deadline_s=deadline, **given)


class Scripted:
    """Does what a function of the snapshot says."""

    name = "scripted"

    def __init__(self, decide):
        self.decide = decide

    def plan(self, snapshot):
        actions = self.decide(snapshot)
        return Plan(list(actions), snapshot.now + 1 if snapshot.jobs.n else math.inf)


def run(policy, *jobs, site=SITE):
    return simulate(list(jobs), {"llm": PROFILE}, policy, site)


def test_times_and_costs_of_one_job():
    result = run(get("edf"), job(bank_factor=0.5), site=SITE)
    (one,) = result.jobs
    # asked at 0, acted on at 0.5, queue 2, start 10: warm at 12.5; next tick 13; spool 0.5, warm 1, lookup 4, tune 50
    assert one.start_s == 13.5
    assert one.end_s == pytest.approx(13.5 + 1 + 4 + 50)
    assert one.looked_up
    assert result.startup_s == pytest.approx(10)
    assert result.busy_s == pytest.approx(one.end_s - 13)
    assert result.idle_s == pytest.approx(0.5)
    assert result.cost_s == pytest.approx(result.busy_s + result.startup_s + result.idle_s)
    assert one.gpu_s == pytest.approx(result.busy_s)


def test_a_daemon_sees_a_new_job_between_ticks_and_its_end_with_the_next():
    site = replace(SITE, bank=False, look_s=0.1, daemon=True)
    (one,) = run(get("edf"), job(submit=0.3, iters=20), site=site).jobs
    # seen at 0.4, where the grid begins anew: asked, acted on at 0.9, warm at 12.9; tick 13.4, spool 0.5, warm 1
    assert one.start_s == pytest.approx(13.9)
    assert one.end_s == pytest.approx(35.4)  # done at 34.9, seen at the tick after it


def test_stale_progress_makes_more_look_left_but_never_more_than_there_was():
    seen = []

    def watch(snapshot):
        if snapshot.jobs.n and snapshot.jobs.phase[0] == JobPhase.RUNNING:
            seen.append(float(snapshot.jobs.iters_mid[0]))
        if snapshot.jobs.n and snapshot.jobs.phase[0] == JobPhase.WAITING:
            warm = [
                a
                for a, phase in zip(snapshot.agents.id, snapshot.agents.phase, strict=True)
                if phase == AgentPhase.WARM
            ]
            if warm:
                yield Assign("a", (warm[0],), "now")
            elif not snapshot.agents.n:
                yield Request(0, "one")

    run(Scripted(watch), job(iters=5), site=replace(SITE, bank=False))
    exact, seen[:] = list(seen), []
    run(Scripted(watch), job(iters=5), site=replace(SITE, bank=False, stale_s=2.0))
    assert len(exact) == len(seen) >= 3
    assert seen == pytest.approx([min(left + 2.0, 5.0) for left in exact])


def test_a_daemon_counts_what_happens_from_the_tick_that_sees_it():
    result = run(get("edf"), job(iters=20), site=replace(SITE, bank=False, daemon=True))
    # asked at 0, started at 2.5, warm at 12.5, up at 14.5, done at 34.5: seen at 3, 13 and 35
    assert (result.startup_s, result.idle_s, result.busy_s) == pytest.approx((10, 0, 22))
    assert result.jobs[0].end_s == result.end_s == pytest.approx(35)


def test_a_daemon_decides_at_every_tick_though_nothing_happens():
    seldom = run(get("edf"), job(iters=20), site=replace(SITE, bank=False))
    each = run(get("edf"), job(iters=20), site=replace(SITE, bank=False, daemon=True))
    assert seldom.plans < 12
    assert each.plans == 36


def test_a_released_agent_holds_its_gpu_until_it_has_ended():
    held = []

    def decide(snapshot):
        agents, now = snapshot.agents, snapshot.now
        held.append((now, agents.n, int((agents.phase == AgentPhase.DRAINING).sum())))
        if not agents.n:
            return [Request(0, "one"), Request(0, "two")]
        warm = [name for name, phase in zip(agents.id, agents.phase, strict=True) if phase == AgentPhase.WARM]
        return [Assign("a", (warm[0],), "now"), Release(warm[1], "not needed")] if len(warm) == 2 else []

    def idle_s(release_s):
        held.clear()
        return run(Scripted(decide), job(iters=20), site=replace(SITE, bank=False, release_s=release_s)).idle_s

    assert idle_s(3.0) == pytest.approx(idle_s(0.0) + 3.0)
    assert idle_s(3.0) == pytest.approx(2 * 0.5 + 0.5 + 3.0)  # warm at 12.5, both seen at 13; spool 0.5, then its end
    assert [(n, draining) for now, n, draining in held if 13 < now <= 16] == [(2, 1)] * 3
    with pytest.raises(SpecError, match="release_s"):
        SimOptions(release_s=-1.0)


@pytest.mark.parametrize("daemon", [False, True])
def test_policies_plan_on_what_they_are_told_and_starts_take_what_they_take(daemon):
    expected = []

    class Watch:
        name = "watch"

        def plan(self, snapshot):
            starting = snapshot.agents.phase == AgentPhase.STARTING
            expected.extend((snapshot.agents.ready_at - snapshot.agents.since)[starting].tolist())
            assert snapshot.pools[0].start_s == 50.0
            return get("edf").plan(snapshot)

    site = replace(SITE, bank=False, daemon=daemon)
    result = simulate([job(iters=20)], {"llm": PROFILE}, Watch(), site, {"llm": replace(PROFILE, start_s=50.0)})
    assert expected and set(expected) == {50.0}
    assert result.startup_s == pytest.approx(10)


def test_without_a_bank_there_is_no_lookup():
    site = SimOptions(gpus=4, bank=False)
    (one,) = run(get("edf"), job(bank_factor=0.5), site=site).jobs
    assert one.end_s == pytest.approx(13.5 + 1 + 100) and not one.looked_up


def test_growing_pauses_once_and_speeds_up():
    def decide(snapshot):
        if not snapshot.agents.n:
            return [Request(0, "x"), Request(0, "x")]
        warm = [snapshot.agents.id[i] for i in range(snapshot.agents.n) if snapshot.agents.phase[i] == AgentPhase.WARM]
        held = [snapshot.agents.id[i] for i in range(snapshot.agents.n) if snapshot.agents.phase[i] == AgentPhase.BUSY]
        phase = snapshot.jobs.phase[0] if snapshot.jobs.n else None
        if phase == JobPhase.WAITING and warm:
            return [Assign(snapshot.jobs.id[0], (warm[0],), "x")]
        if phase == JobPhase.RUNNING and warm and snapshot.now >= 30:
            return [Assign(snapshot.jobs.id[0], (*held, warm[0]), "x")]
        return []

    result = run(Scripted(decide), job())
    (one,) = result.jobs
    # steps from 14.5; order at 30, new member there at 31.5; pause 3; the rest at 1.9 steps/s
    done = 31.5 - 14.5
    assert one.resizes == 1
    assert one.end_s == pytest.approx(34.5 + (100 - done) / 1.9)


def test_pausing_keeps_the_work_done():
    def decide(snapshot):
        if not snapshot.agents.n:
            return [Request(0, "x")]
        warm = [snapshot.agents.id[i] for i in range(snapshot.agents.n) if snapshot.agents.phase[i] == AgentPhase.WARM]
        if not snapshot.jobs.n:
            return []
        if snapshot.jobs.phase[0] == JobPhase.RUNNING and snapshot.now == 34:
            return [Assign("a", (), "x")]
        if snapshot.jobs.phase[0] == JobPhase.WAITING and warm and (snapshot.now < 30 or snapshot.now > 40):
            return [Assign("a", (warm[0],), "x")]
        return []

    (one,) = run(Scripted(decide), job()).jobs
    assert one.pauses == 1
    assert one.end_s == pytest.approx(41 + 1.5 + 100 - (34 - 14.5))


@pytest.mark.parametrize("name", ["prompttuner", "infless", "elasticflow-fixed"])
def test_equal_arguments_give_equal_results(name):
    jobs = generate(Workload(gpus=8, length_s=900, slo=SloMultiple.parse("U(0.5,1.5)"), seed=4))
    from prompttuner.profiles import stated

    site = SimOptions(gpus=8, predict_sigma=0.2, start_sigma=0.2, losses_per_gpu_hour=2.0, seed=7)
    first, second = (simulate(jobs, stated({j.llm for j in jobs}), get(name), site) for _ in range(2))
    assert first.outcomes() == second.outcomes()
    assert first.summary() == second.summary()


def test_lost_agents_are_replaced_and_cost_work():
    site = SimOptions(gpus=2, losses_per_gpu_hour=40.0, seed=3)
    calm = run(get("prompttuner"), job(iters=600.0), site=SimOptions(gpus=2))
    rough = run(get("prompttuner"), job(iters=600.0), site=site)
    assert rough.allocations > calm.allocations
    assert rough.jobs[0].end_s > calm.jobs[0].end_s


def test_a_node_takes_all_its_agents_along_and_a_preemption_one_without_loss_of_work():
    def four(snapshot):
        if snapshot.jobs.n and not snapshot.agents.n and not asked:
            asked.append(True)
            return [Request(0, "one") for _ in range(4)]
        warm = [snapshot.agents.id[i] for i in range(snapshot.agents.n) if snapshot.agents.phase[i] == AgentPhase.WARM]
        held.append(int((snapshot.agents.phase == AgentPhase.BUSY).sum()))
        return [Assign("a", tuple(warm), "all")] if len(warm) == snapshot.agents.n > 0 else []

    def run_with(**given):
        asked.clear()
        held.clear()
        with pytest.raises(StateError, match="leaves 1 job behind"):  # nobody replaces what was lost
            run(Scripted(four), job(iters=1e6, max_gpus=4), site=replace(SITE, horizon_s=9000.0, **given))
        return {b - a for a, b in pairwise(held) if b < a}

    asked, held = [], []
    assert run_with(losses_per_gpu_hour=2.0, gpus_per_node=2) == {-2}
    assert run_with(losses_per_gpu_hour=2.0, gpus_per_node=4) == {-4}
    assert run_with(preemptions_per_gpu_hour=2.0) == {-1}


def test_preemption_costs_a_new_start_but_no_work_a_loss_costs_work_too():
    def overhead(**given):
        result = run(get("prompttuner"), job(iters=600.0, max_gpus=1), site=replace(SITE, bank=False, seed=3, **given))
        assert len(result.spans) > 2
        return result.jobs[0].gpu_s - 600.0 - 1.5 * len(result.spans)  # spool delay and warm start of each span

    assert overhead(preemptions_per_gpu_hour=30.0) <= 1e-6
    assert overhead(losses_per_gpu_hour=30.0, checkpoint_s=60.0) > 5.0


def test_the_idle_guard_ends_an_agent_that_nobody_releases():
    def decide(snapshot):
        return [Request(0, "x")] if snapshot.now == 0 else []

    site = SimOptions(gpus=1, idle_limit_s=20.0, horizon_s=200.0)
    with pytest.raises(StateError, match="leaves 1 job behind"):
        run(Scripted(decide), job(), site=site)


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (lambda s: [Assign(s.jobs.id[0], ("nobody",), "x")], "no agent nobody"),
        (lambda s: [Request(0, "x") for _ in range(5)], "beyond the limit"),
        (lambda s: [Request(0, "x")] if not s.agents.n else [SwitchModel(s.agents.id[0], 0, "x")], "cannot switch"),
        (lambda s: [Request(0, "x")] if not s.agents.n else [Assign("a", (s.agents.id[0],), "x")], "not free"),
        (lambda s: [Release("ghost", "x")], "no agent ghost"),
    ],
)
def test_illegal_actions_are_refused(decide, message):
    with pytest.raises(StateError, match=message):
        run(Scripted(decide), job())


def test_bad_input_is_told():
    with pytest.raises(SpecError, match="no jobs"):
        run(get("edf"))
    with pytest.raises(SpecError, match="no profile"):
        simulate([job()], {}, get("edf"))
    with pytest.raises(SpecError, match="needs more"):
        run(get("edf"), job(min_gpus=5, max_gpus=8))
    with pytest.raises(SpecError, match="gpus"):
        SimOptions(gpus=0)


@pytest.mark.parametrize("name", ["prompttuner", "edf", "infless", "sbatch", "elasticflow", "elasticflow-fixed"])
@pytest.mark.parametrize("bank", [True, False])
def test_no_policy_beats_the_bound(name, bank):
    from prompttuner.profiles import stated

    for seed in range(2):
        jobs = generate(Workload(gpus=4, load=1.0, length_s=900, slo=SloMultiple.parse("0.5"), seed=seed))
        profiles = stated({j.llm for j in jobs})
        limit = bound(jobs, 4, {n: p.speedup for n, p in profiles.items()}, bank=bank, slots=60)
        result = simulate(jobs, profiles, get(name), SimOptions(gpus=4, bank=bank))
        assert result.violations >= limit.violations
        if not any(one.rejected for one in result.jobs):
            assert result.cost_s >= limit.work_gpu_s


def test_a_policy_told_half_of_the_work_believes_it_until_it_has_seen_more() -> None:
    told: list[tuple[float, float]] = []

    class Watching:
        name = "watching"

        def plan(self, snapshot: Snapshot) -> Plan:
            if snapshot.jobs.n:
                told.append((snapshot.now, float(snapshot.jobs.iters_mid[0])))
            return get("edf").plan(snapshot)

    job = TraceJob("a", 0.0, "gpt2-base", 1000, 0.1, max_gpus=1)
    options = SimOptions(gpus=1, predict_bias=0.5, daemon=True)
    end = simulate([job], stated(["gpt2-base"]), Watching(), options).jobs[0].end_s
    assert told[0][1] == 500
    running = [((end - now) / 0.1, iters) for now, iters in told if end - 95 < now < end - 5]
    assert len(running) > 50
    for left, iters in running:
        assert iters == pytest.approx(left * (1 - 0.5 * left / 1000), abs=12), "half of what it has not seen"
    with pytest.raises(SpecError, match="predict_bias"):
        SimOptions(predict_bias=0.0)
