"""Plans of members: one author a generation, and nothing that a dying author can leave in between."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.errors import SpoolError
from prompttuner.files import create_json, make_private_dir, write_json
from prompttuner.protocol.jobs import Membership
from prompttuner.worker.membership import member_dir, propose, read_membership


def test_a_plan_survives_its_json(tmp_path: Path) -> None:
    plan = Membership(1, ("a", "b"), {"a": "10.0.0.1"}, 2.5).after(["b", "c"], by="x", addresses={"c": "h"}, stop="why")
    assert Membership.read(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.generation == 2 and plan.previous == ((1, ("a", "b")),) and plan.addresses == {"c": "h"}


@pytest.mark.parametrize("broken", [{}, {"generation": 1, "members": ["a", "a"]}, {"generation": "x", "members": []}])
def test_what_is_no_plan_is_refused_by_name(broken: dict[str, object]) -> None:
    with pytest.raises(SpoolError, match=r"plan\.json"):
        Membership.expect(broken)


def test_of_many_authors_of_a_generation_one_wins_and_all_read_the_same(tmp_path: Path) -> None:
    propose(tmp_path, Membership(1, ("a", "b", "c", "d")))
    now = read_membership(tmp_path)
    assert now is not None
    won: list[str] = []
    gate = threading.Barrier(8)

    def author(name: str) -> None:
        gate.wait()
        if propose(tmp_path, now.without([name[0]], by=name)):
            won.append(name)

    threads = [threading.Thread(target=author, args=(f"{'abcd'[i % 4]}{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest = read_membership(tmp_path)
    assert newest is not None and len(won) == 1 and newest.by == won[0] and newest.generation == 2


def test_a_claim_counts_even_if_its_author_died_before_it_replaced_the_plan(tmp_path: Path) -> None:
    first = Membership(1, ("a", "b"))
    propose(tmp_path, first)
    second = first.without(["a"], by="b")
    create_json(tmp_path / "claims" / "2.json", second.to_json())
    assert read_membership(tmp_path) == second
    assert propose(tmp_path, second), "the same plan again is no conflict"
    assert json.loads((tmp_path / "plan.json").read_text())["generation"] == 2


def test_a_slow_author_that_writes_an_old_plan_late_takes_nothing_back(tmp_path: Path) -> None:
    first = Membership(1, ("a", "b", "c"))
    propose(tmp_path, first)
    second = first.without(["a"], by="b")
    propose(tmp_path, second)
    propose(tmp_path, second.without(["b"], by="c"))
    write_json(tmp_path / "plan.json", first.to_json())
    newest = read_membership(tmp_path)
    assert newest is not None and newest.generation == 3 and newest.members == ("c",)


def test_what_others_poll_is_there_before_the_plan_names_them(tmp_path: Path) -> None:
    propose(tmp_path, Membership(1, ("a", "b")))
    for agent in ("a", "b"):
        folder = member_dir(tmp_path, 1, agent)
        assert {path.name for path in folder.iterdir()} == {"progress.json", "store.json"}
        assert folder.stat().st_mode & 0o777 == 0o700


@settings(deadline=None, max_examples=50)
@given(steps=st.lists(st.tuples(st.booleans(), st.sets(st.sampled_from("abcdef"), min_size=1)), max_size=8))
def test_generations_only_grow_whoever_writes(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    """An author either finishes or dies after its claim; every reader sees generations without gap, in order."""
    job = make_private_dir(tmp_path_factory.mktemp("job"))
    make_private_dir(job / "claims")
    for expected, (dies, members) in enumerate(steps, start=1):
        now = read_membership(job)
        assert (now.generation if now else 0) == expected - 1
        plan = (now or Membership(0, ())).after(sorted(members), by="controller")
        if dies:
            assert create_json(job / "claims" / f"{plan.generation}.json", plan.to_json())
        else:
            assert propose(job, plan)
        newest = read_membership(job)
        assert newest is not None and newest.generation == expected and newest.members == tuple(sorted(members))
