"""A controller that slept while another took over changes nothing on waking; orders reach agents in spite of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, scratch_root

from prompttuner.controller.act import projection as project
from prompttuner.controller.act import submission
from prompttuner.db import OwnerInfo, Store
from prompttuner.db.queries import allocations
from prompttuner.errors import DatabaseError, NotOwner
from prompttuner.files import read_json, write_json
from prompttuner.protocol.agents import Order
from prompttuner.states import JobState


def take_over(lab: Lab) -> None:
    """Somebody else becomes the owner, as after a long pause of the lab's controller."""
    with Store.open(lab.settings.database_url, notes_dir=lab.settings.home) as store:
        store.acquire(OwnerInfo.of_this_process("the other"), ttl_s=600.0)


def files_of(lab: Lab) -> dict[str, bytes]:
    """What agents and workers are told."""
    told = [*lab.spool.agents.glob("*/*.json"), *lab.spool.jobs.glob("*/plan.json"), *lab.spool.jobs.glob("*/claims/*")]
    return {str(path): path.read_bytes() for path in told}


@pytest.mark.parametrize("asleep", ["before submitting", "before cancelling", "before orders"])
def test_a_controller_that_slept_through_a_take_over_does_nothing_more(
    lab: Lab, asleep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asleep == "before cancelling":
        lab.site.gpus = 0
    first = lab.submit(ita=900, max_iterations=1000, max_gpus=1)
    if asleep != "before submitting":
        lab.run(20)
        kind = "release_agent" if asleep == "before cancelling" else "hold"
        write_json(lab.spool.request("stop"), {"id": "stop", "kind": kind, "allocation": "all", "job": first})
    step, name = {
        "before submitting": (submission.Submitter, "submit"),
        "before cancelling": (submission.Submitter, "cancel"),
        "before orders": (project.Projector, "project"),
    }[asleep]
    real, cancelled = getattr(step, name), list[Any]()
    before: list[Any] = []

    def pause(*args: Any) -> Any:
        take_over(lab)
        before.extend([files_of(lab), list(lab.site.submitted)])
        return real(*args)

    monkeypatch.setattr(step, name, pause)
    monkeypatch.setattr(lab.site, "cancel", cancelled.append)
    with pytest.raises(NotOwner, match="the other"):
        lab.tick()
    assert [files_of(lab), lab.site.submitted] == before
    assert cancelled == []


def test_an_order_replaced_by_a_controller_that_woke_up_is_written_again(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder,
        Lab(Path(folder), idle_limit_s=3000.0) as lab,  # the idle guard would mend it too, later
    ):
        first = lab.submit(ita=60, max_gpus=1)
        lab.run(20)
        (agent,) = list(lab.spool.agents.iterdir())
        stale = read_json(agent / "order.json")
        lab.crash()
        lab.run(30)
        assert lab.job(first).state == JobState.DONE
        second = lab.submit(ita=900, max_iterations=1000, max_gpus=1)
        lab.tick()
        assert read_json(agent / "order.json")["job"] == second
        write_json(agent / "order.json", stale)  # before the agent has looked
        lab.run(120, every=5.0)
        assert lab.job(second).step > 0
        assert len(lab.site.submitted) == 1


def test_agents_take_orders_again_after_the_database_failed_between_order_and_row(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = lab.submit(ita=20, max_gpus=1)
    lab.run(20)
    assert lab.job(warm).state == JobState.DONE
    first = lab.submit(ita=900, max_iterations=1000, max_gpus=1)
    real = lab.store.transact

    def away(ownership: Any, work: Any) -> Any:
        if "Projector" in work.__qualname__:
            raise DatabaseError("the server is restarting")
        return real(ownership, work)

    with monkeypatch.context() as patch:
        patch.setattr(lab.store, "transact", away)
        with pytest.raises(DatabaseError):
            lab.tick()
        lab.site.step(1.0)
    assert lab.ask("cancel", job=first)["ok"]
    lab.run(5)
    second = lab.submit(ita=30, max_gpus=1)
    lab.run(60)
    assert lab.job(second).state == JobState.DONE
    assert len(lab.store.query(allocations.find)) == 1


def test_an_order_gets_a_number_that_was_never_used(lab: Lab) -> None:
    lab.submit(ita=900, max_iterations=1000, max_gpus=1)
    lab.run(20)
    (row,) = lab.store.query(allocations.load_live)
    wanted = Order(owner=lab.ownership.generation)
    numbers = [project.write_order(lab.spool, row, wanted, lab.site.time).seq for _ in range(3)]  # the row stays
    assert numbers == sorted(set(numbers)) and numbers[0] == row.order["seq"] + 1
