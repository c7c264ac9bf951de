"""Pools: who may share an agent, and that an upgrade keeps what was learned."""

from __future__ import annotations

from typing import Any

import pytest

from prompttuner.controller.plan.pools import Pool, pool_of
from prompttuner.protocol.agents import AgentSettings

PLAIN: dict[str, Any] = {"model": "/models/a", "model_name": "a", "dtype": "auto"}


@pytest.mark.parametrize(
    "changes", [{"dtype": "float32"}, {"trust_remote_code": ["a"]}, {"gpu_type": "a100"}, {"setup": ["module load x"]}]
)
def test_an_agent_never_switches_across_what_changes_the_weights(changes: dict[str, Any]) -> None:
    one, other = pool_of(PLAIN), pool_of({**PLAIN, "model": "/models/b", **changes})
    assert one.place == pool_of({**PLAIN, "model": "/models/b"}).place
    assert one.place != other.place


def test_a_list_of_trusted_code_is_about_the_models_that_it_names() -> None:
    assert pool_of({**PLAIN, "trust_remote_code": ["another"]}).trust_remote_code == ()
    assert pool_of({**PLAIN, "trust_remote_code": ["another"]}).place == pool_of(PLAIN).place
    assert pool_of({**PLAIN, "trust_remote_code": ["a", "another"]}).trust_remote_code == ("/models/a",)
    settings = AgentSettings(model="/models/a", trust_remote_code=["/models/a"])
    assert settings.trusts("/models/a") and not settings.trusts("/models/b")
    assert AgentSettings(model="/models/a", trust_remote_code=["a"]).trusts("/models/a"), "settings of a former release"


def test_keys_and_rows_of_a_former_release_go_on() -> None:
    spec = {**PLAIN, "dtype": "float32", "trust_remote_code": ["a"]}
    pool = pool_of(spec)
    assert pool.key == "a-b46beb"
    former = {**pool.place_record(), "place": "made by another rule", "trust_remote_code": ["a"]}
    assert Pool.from_record(pool.key, pool.model, former) == pool
