"""What members of a running job are told: set by the user, carried whole, with defaults that have one owner."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from lab import Lab

from prompttuner.config import load_layers
from prompttuner.config.settings import FORMER_NAMES, ElasticOptions, Settings
from prompttuner.errors import ConfigError
from prompttuner.files import read_json
from prompttuner.protocol.agents import AgentSettings
from prompttuner.protocol.elastic import ElasticSettings

CHOSEN: dict[str, Any] = {
    "way": "restart", "backend": "nccl", "grace_s": 7.0, "join_timeout_s": 77.0, "loss_timeout_s": 17.0,
    "checkpoint_s": 41.0, "checkpoint_steps": 23, "threads": 3,
}  # fmt: skip


def test_what_a_user_sets_arrives_at_the_agent_whole(tmp_path: Path) -> None:
    with Lab(tmp_path, elastic=CHOSEN, poll_s=0.4) as lab:
        lab.submit()
        lab.tick()
        (path,) = lab.spool.agents.glob("*/settings.json")
        elastic = AgentSettings.expect(read_json(path)).elastic
    assert {name: getattr(elastic, name) for name in CHOSEN} == CHOSEN
    assert (elastic.poll_s, elastic.interface, elastic.bank_dirs) == (0.4, "lo", (str(tmp_path / "home" / "bank"),))
    assert ElasticSettings.from_env(elastic.to_env()) == elastic, "and from there at the zygote"


def test_the_defaults_are_those_of_the_leases() -> None:
    leases = ElasticSettings()
    own = {name: getattr(leases, name) for name in ElasticOptions.model_fields}
    assert ElasticOptions().model_dump() == own
    assert {f.name for f in fields(ElasticSettings)} - own.keys() == {"poll_s", "resident", "bank_dirs"}


@pytest.mark.parametrize("former", FORMER_NAMES)
def test_names_of_the_release_before_still_work(former: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = FORMER_NAMES[former].partition(".")[2]
    value = "ib0" if key == "interface" else 9
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path))
    assert getattr(load_layers({former: value}, tmp_path).settings.elastic, key) == value, "as a flag"
    (tmp_path / "config.toml").write_text(f"{former} = {value!r}\n")
    layers = load_layers(cwd=tmp_path)
    assert getattr(layers.settings.elastic, key) == value, "in a file"
    assert layers.origins[FORMER_NAMES[former]].endswith("config.toml")
    (tmp_path / "config.toml").unlink()
    monkeypatch.setenv(f"PROMPTTUNER_{former.replace('.', '__').upper()}", str(value))
    assert getattr(load_layers(cwd=tmp_path).settings.elastic, key) == value, "as a variable"
    group, _, name = former.rpartition(".")
    in_python = Settings(**({group: {name: value}} if group else {name: value}))
    assert getattr(in_python.elastic, key) == value, "in Python"


def test_settings_of_an_agent_that_was_asked_for_by_the_release_before_are_read() -> None:
    former = {
        "agent": "a", "threads": 2, "poll_s": 0.3, "loss_timeout_s": 11.0, "checkpoint_every_s": 12.0,
        "checkpoint_every_steps": 13, "interface": "ib0", "bank_dirs": ["/b"], "walltime_s": None,
    }  # fmt: skip
    settings = AgentSettings.expect(former)
    assert settings.elastic == ElasticSettings(
        loss_timeout_s=11.0, poll_s=0.3, interface="ib0", threads=2, checkpoint_s=12.0, checkpoint_steps=13,
        bank_dirs=("/b",),
    )  # fmt: skip


@pytest.mark.parametrize("wrong", [{"way": "sideways"}, {"grace_s": 0}, {"backend": "mpi"}, {"interface": "a b"}])
def test_what_cannot_be_is_refused_when_settings_load(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)) if "interface" not in wrong else "blanks"):
        load_layers({f"elastic.{key}": value for key, value in wrong.items()}, tmp_path)


def test_an_unknown_policy_is_refused_when_settings_load(tmp_path: Path) -> None:
    from prompttuner.policy.registry import POLICIES

    with pytest.raises(ConfigError, match="policy"):
        load_layers({"policy": "fifoo"}, tmp_path)
    assert {Settings(policy=name).policy for name in POLICIES} == set(POLICIES)  # type: ignore[arg-type]
