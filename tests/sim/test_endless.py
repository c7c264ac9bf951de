"""A simulation without a horizon ends: with the jobs, or with an error that says what makes no progress."""

import pytest

from prompttuner.errors import StateError
from prompttuner.policy import get
from prompttuner.policy.contract.plan import Plan, Release, Request
from prompttuner.policy.contract.snapshot import AgentPhase, Snapshot
from prompttuner.profiles import stated
from prompttuner.sim import SimOptions, simulate
from prompttuner.trace.generate import Workload, generate
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple

POLICIES = ("prompttuner", "edf", "infless", "sbatch", "elasticflow", "elasticflow-fixed")


@pytest.mark.parametrize("idle_limit_s", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_ends_its_jobs_where_idle_agents_end_themselves_soon(policy: str, idle_limit_s: float) -> None:
    jobs = generate(Workload(gpus=4, load=0.5, length_s=600, seed=1, slo=SloMultiple.parse("U(0.5,1.5)")))
    profiles = stated({job.llm for job in jobs})
    result = simulate(jobs, profiles, get(policy), SimOptions(gpus=4, idle_limit_s=idle_limit_s))
    assert all(job.rejected or job.end_s < 1e6 for job in result.jobs)


class Restless:
    """Asks for an agent, and gives it back as soon as it starts."""

    name = "restless"

    def plan(self, snapshot: Snapshot) -> Plan:
        agents = snapshot.agents
        starting = [agents.id[k] for k in range(agents.n) if agents.phase[k] == AgentPhase.STARTING]
        asks = [] if agents.n else [Request(0, "again")]
        return Plan([*asks, *(Release(name, "no") for name in starting)], snapshot.now + 1)


class Asleep:
    """Wants to be woken, and does nothing."""

    name = "asleep"

    def plan(self, snapshot: Snapshot) -> Plan:
        return Plan([], snapshot.now + 3600)


@pytest.mark.parametrize("policy", [Restless(), Asleep()])
def test_a_policy_that_never_gets_anywhere_is_named(policy: Restless | Asleep) -> None:
    job = TraceJob("a", 0.0, "gpt2-base", 100, 0.1)
    with pytest.raises(StateError, match=f"policy {policy.name} makes no progress.*1 job left at .*: a"):
        simulate([job], stated(["gpt2-base"]), policy, SimOptions(gpus=1))


def test_losses_that_undo_all_work_end_the_simulation_with_an_error() -> None:
    job = TraceJob("a", 0.0, "gpt2-base", 40_000, 0.1, max_gpus=1)
    options = SimOptions(gpus=1, losses_per_gpu_hour=900.0, checkpoint_s=1000.0)
    with pytest.raises(StateError, match="losses that come faster than checkpoints"):
        simulate([job], stated(["gpt2-base"]), get("edf"), options)


def test_a_job_that_takes_weeks_is_no_stall() -> None:
    job = TraceJob("a", 0.0, "gpt2-base", 3e7, 0.1, max_gpus=1)
    result = simulate([job], stated(["gpt2-base"]), get("prompttuner"), SimOptions(gpus=1))
    assert result.jobs[0].end_s > 2.9e6
