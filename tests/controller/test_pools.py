"""Pools: who may share an agent, and that an upgrade keeps what was learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prompttuner.controller.plan.pools import Pool, pool_of
from prompttuner.protocol.agents import AgentSettings
from prompttuner.protocol.spec import ResolvedSpec

PLAIN: dict[str, Any] = {
    "model": "/models/a",
    "model_name": "a",
    "dtype": "auto",
    "target": {"metric": "loss", "op": "<=", "value": 0.1},
    "max_iterations": 4,
    "batch_size": 8,
}


def pool(values: dict[str, Any]) -> Pool:
    return pool_of(ResolvedSpec.expect(values))


@pytest.mark.parametrize(
    "changes", [{"dtype": "float32"}, {"trust_remote_code": ["a"]}, {"gpu_type": "a100"}, {"setup": ["module load x"]}]
)
def test_an_agent_never_switches_across_what_changes_the_weights(changes: dict[str, Any]) -> None:
    one, other = pool(PLAIN), pool({**PLAIN, "model": "/models/b", **changes})
    assert one.place == pool({**PLAIN, "model": "/models/b"}).place
    assert one.place != other.place


def test_a_list_of_trusted_code_is_about_the_models_that_it_names() -> None:
    assert pool({**PLAIN, "trust_remote_code": ["another"]}).trust_remote_code == ()
    assert pool({**PLAIN, "trust_remote_code": ["another"]}).place == pool(PLAIN).place
    assert pool({**PLAIN, "trust_remote_code": ["a", "another"]}).trust_remote_code == ("/models/a",)
    settings = AgentSettings(model="/models/a", trust_remote_code=["/models/a"])
    assert settings.trusts("/models/a") and not settings.trusts("/models/b")
    assert AgentSettings(model="/models/a", trust_remote_code=["a"]).trusts("/models/a"), "settings of a former release"


def test_keys_and_rows_of_a_former_release_go_on() -> None:
    spec = {**PLAIN, "dtype": "float32", "trust_remote_code": ["a"]}
    found = pool(spec)
    assert found.key == "a-b46beb"
    former = replace(found.place_record(), place="made by another rule", trust_remote_code=("a",))
    assert Pool.from_record(found.key, found.model, former) == found
