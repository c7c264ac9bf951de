"""The agent's loop against a fake zygote (named so) and a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prompttuner.files import read_json, write_json
from prompttuner.protocol.agents import AgentSettings, Order
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.zygote import ZygoteEvent
from prompttuner.slurm.agent.agent import LEAVE_GRACE_S, Agent
from prompttuner.slurm.agent.entry import main
from prompttuner.slurm.agent.guard import IdleGuard, WalltimeGuard


class FakeZygote:
    """Answers at once; a lease runs until the test ends it."""

    def __init__(self) -> None:
        self.alive = True
        self.calls: list[tuple[Any, ...]] = []
        self.events = [ZygoteEvent(ev="ready")]

    def load(self, model: str, dtype: str = "auto", trust_remote_code: bool = False) -> None:
        self.calls.append(("load", model))
        self.events.append(ZygoteEvent(ev="loaded", model=model, seconds=0.1, bytes=1))

    def lease(self, job_dir: Path, agent: str, generation: int, address: str) -> None:
        self.calls.append(("lease", Path(job_dir).name, generation))
        self.events.append(ZygoteEvent(ev="lease_started", pid=1))

    def idle_work(self, bank_dir: Path, model: str) -> None:
        self.calls.append(("idle_work", model))

    def end_lease(self) -> None:
        self.calls.append(("end_lease",))

    def kill_lease(self) -> None:
        self.calls.append(("kill_lease",))

    def poll(self) -> list[ZygoteEvent]:
        events, self.events = self.events, []
        return events

    def exit(self) -> None:
        self.alive = False

    def ended(self, outcome: str = "done", **more: Any) -> None:
        self.events.append(ZygoteEvent(ev="lease_ended", outcome=outcome, **more))


LOOPBACK = ElasticSettings(interface="lo")


class World:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.time = 1000.0
        self.zygote = FakeZygote()
        self.settings = AgentSettings(
            agent="a1",
            model="m",
            jobs_dir=str(folder / "jobs"),
            **{"elastic": LOOPBACK, "idle_limit_s": 60.0, **settings},
        )
        self.order = Order(seq=1, owner=1)
        self.agent = Agent(folder, self.settings, "i1", lambda *_: self.zygote, lambda: self.time)
        self.tell()

    def tell(self, **changes: Any) -> None:
        self.order = replace(self.order, **changes, seq=self.order.seq + 1)
        write_json(self.folder / "order.json", self.order.to_json())

    def steps(self, count: int = 3, seconds: float = 0.2) -> dict[str, Any]:
        for _ in range(count):
            self.agent.step()
            self.time += seconds
        return read_json(self.folder / "status.json")

    @property
    def end(self) -> tuple[str, str] | None:
        return self.agent._end


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_loads_its_model_and_is_warm(world: World) -> None:
    status = world.steps()
    assert world.zygote.calls == [("load", "m")]
    assert (status["state"], status["model"], status["loads"]) == ("warm", "m", 1)


def test_takes_a_lease_reports_busy_and_is_warm_again_without_loading(world: World) -> None:
    world.steps()
    world.tell(job="j1", generation=1)
    status = world.steps(2)
    assert (status["state"], status["job"], status["generation"]) == ("busy", "j1", 1)
    world.zygote.ended("done", generation=1)
    world.tell(job=None)
    status = world.steps()
    assert (status["state"], status["job"], status["leases"], status["loads"]) == ("warm", None, 1, 1)


def test_a_finished_generation_is_not_started_again_but_a_newer_one_is(world: World) -> None:
    world.steps()
    world.tell(job="j1", generation=1)
    world.steps(2)
    world.zygote.ended("crashed")
    world.steps()
    world.tell(job="j1", generation=2)
    world.steps()
    assert [c for c in world.zygote.calls if c[0] == "lease"] == [("lease", "j1", 1), ("lease", "j1", 2)]


def test_orders_of_an_older_owner_or_a_stale_read_are_ignored(world: World) -> None:
    world.tell(owner=5)
    world.steps()
    world.tell(owner=4, job="j1", generation=1)
    world.steps()
    world.order = replace(world.order, owner=5, seq=0)
    write_json(world.folder / "order.json", world.order.to_json())
    world.steps()
    assert [c for c in world.zygote.calls if c[0] == "lease"] == []


def test_ends_itself_at_the_idle_limit(world: World) -> None:
    world.steps()
    world.steps(50, seconds=1.0)
    assert world.end is None
    world.steps(15, seconds=1.0)
    assert world.end is not None and world.end[0] == "idle"


def test_idle_work_for_the_bank_does_not_reset_the_idle_clock(tmp_path: Path) -> None:
    world = World(tmp_path, elastic=ElasticSettings(interface="lo", bank_dirs=("/bank",)), idle_limit_s=100.0)
    world.steps(90, seconds=1.0)
    assert world.zygote.calls.count(("idle_work", "m")) == 2 and world.end is None
    world.steps(15, seconds=1.0)
    assert world.end is not None and world.end[0] == "idle"


def test_a_job_resets_the_idle_clock(world: World) -> None:
    world.steps(50, seconds=1.0)
    world.tell(job="j1", generation=1)
    world.steps(200, seconds=1.0)
    assert world.end is None
    world.zygote.ended("done")
    world.tell(job=None)
    world.steps(58, seconds=1.0)
    assert world.end is None
    world.steps(5, seconds=1.0)
    assert world.end is not None and world.end[0] == "idle"


def test_not_admitted_means_it_leaves_at_once(world: World) -> None:
    world.tell(admit=False)
    world.steps(1)
    assert world.end is not None and world.end[0] == "refused"


def test_a_worker_that_does_not_leave_is_signalled_then_killed(world: World) -> None:
    world.steps()
    world.tell(job="j1", generation=1)
    world.steps(2)
    world.tell(job=None)
    world.steps(2)
    assert ("end_lease",) not in world.zygote.calls
    world.time += LEAVE_GRACE_S
    world.steps(2)
    assert ("end_lease",) in world.zygote.calls
    world.time += 2 * LEAVE_GRACE_S
    world.steps(1)
    assert ("kill_lease",) in world.zygote.calls


def test_a_signal_checkpoints_before_the_end(world: World) -> None:
    world.steps()
    world.tell(job="j1", generation=1)
    world.steps(2)
    world.agent.told_to_end = "SIGTERM"
    world.steps(1)
    assert ("end_lease",) in world.zygote.calls and world.end is None
    world.zygote.ended("terminated")
    world.steps(1)
    assert world.end == ("signal", "SIGTERM")


def test_near_the_walltime_it_takes_no_new_lease_and_ends(tmp_path: Path) -> None:
    world = World(tmp_path, walltime_s=1000.0, walltime_end_margin_s=60.0, idle_limit_s=3000.0)
    world.steps()
    world.time += 945
    world.tell(job="j1", generation=1)
    world.steps(2)
    assert [c for c in world.zygote.calls if c[0] == "lease"] == []
    assert world.end is not None and world.end[0] == "walltime"


def test_a_dead_zygote_is_replaced_and_its_lease_counts_as_crashed(world: World) -> None:
    world.steps()
    world.tell(job="j1", generation=1)
    world.steps(2)
    world.zygote.alive = False
    old, world.zygote = world.zygote, FakeZygote()
    status = world.steps()
    assert old.calls[0] == ("load", "m") and world.zygote.calls == [("load", "m")]
    assert status["lease"] == "crashed" and world.end is None


def test_switches_its_model_when_told(world: World) -> None:
    world.steps()
    world.tell(model="m2")
    status = world.steps()
    assert world.zygote.calls == [("load", "m"), ("load", "m2")]
    assert (status["model"], status["models"]) == ("m2", ["m", "m2"])


def test_a_second_copy_of_an_allocation_leaves_without_writing(tmp_path: Path) -> None:
    write_json(tmp_path / "settings.json", AgentSettings(agent="a1", model="m", elastic=LOOPBACK).to_json())
    write_json(tmp_path / "instance.json", {"instance": "first"})
    assert main(str(tmp_path / "settings.json")) == "refused"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["instance.json", "settings.json"]


@pytest.mark.parametrize("guard", [lambda c: IdleGuard(10, c), lambda c: WalltimeGuard(100, 10, c)])
def test_guards_use_their_own_clock_only(guard: Callable[[Callable[[], float]], Any]) -> None:
    now = [0.0]
    made = guard(lambda: now[0])
    if isinstance(made, IdleGuard):
        made.idle()
        now[0] = 9.9
        assert not made.expired
        now[0] = 10.0
        assert made.expired
    else:
        assert not made.near
        now[0] = 90.0
        assert made.near


def test_where_placeholders_are_forbidden_it_ends_with_its_job(tmp_path: Path) -> None:
    world = World(tmp_path, stay_warm=False)
    world.steps(20, seconds=1.0)
    assert world.end is None, "it waits for its first job"
    world.tell(job="j1", generation=1)
    world.steps(2)
    world.zygote.ended("done", generation=1)
    world.tell(job=None)
    world.steps(10, seconds=1.0)
    assert world.end is not None and world.end[0] == "job ended"


def test_a_released_agent_ends_without_another_poll(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            world.tell(drain=True, stop=True)

    monkeypatch.setattr("prompttuner.slurm.agent.agent.time.sleep", sleep)
    assert world.agent.run()[0] == "released"
    assert len(slept) == 2
