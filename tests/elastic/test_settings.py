"""Settings of leases on their way to the zygote, the choice of interface, and what doctor says of both."""

from __future__ import annotations

import socket

import pytest

from prompttuner.errors import ConfigError, HostError
from prompttuner.protocol.elastic import ENV, ElasticSettings
from prompttuner.worker.elastic import findings, network
from prompttuner.worker.elastic.network import address_of, default_address, interface_of, interfaces, listen_on


def test_settings_survive_the_environment() -> None:
    settings = ElasticSettings(loss_timeout_s=3, way="restart", interface="lo", bank_dirs=("/a", "/b"))
    assert ElasticSettings.from_env(settings.to_env()) == settings
    assert ElasticSettings.from_env({}) == ElasticSettings()


@pytest.mark.parametrize(
    "wrong", [{"loss_timeout_s": 0}, {"way": "sideways"}, {"backend": "mpi"}, {"threads": 0}, {"grace_s": 0}]
)
def test_settings_that_can_not_be_right_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)).split("_")[0]):
        ElasticSettings(**wrong)  # type: ignore[arg-type]


def test_broken_settings_name_the_variable() -> None:
    with pytest.raises(ConfigError, match=ENV):
        ElasticSettings.from_env({ENV: "no json"})


def test_a_loopback_name_belongs_to_the_loopback_interface() -> None:
    assert interface_of("127.0.0.1") == interface_of("127.0.1.1")
    assert address_of(interface_of("127.0.0.1")) == "127.0.0.1"
    assert default_address() in {*interfaces().values(), "127.0.0.1", "127.0.1.1"}


def test_an_address_that_is_not_ours_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"no network interface.*lo 127\.0\.0\.1"):
        interface_of("203.0.113.7")
    with pytest.raises(ConfigError, match="is it an address of this host"):
        listen_on("203.0.113.7")
    with pytest.raises(ConfigError, match="no network interface 'nope0'"):
        address_of("nope0")


def test_an_agent_uses_an_address_that_its_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "resolve", lambda _name: "203.0.113.7")
    assert default_address() in {*interfaces().values(), "127.0.0.1"}


def test_an_address_that_the_host_lacks_is_the_hosts_fault() -> None:
    with pytest.raises(HostError):
        listen_on("203.0.113.7")
    with pytest.raises(HostError):
        interface_of("203.0.113.7")


def test_a_store_listens_on_one_address_only() -> None:
    with listen_on("127.0.0.1") as server:
        host, port = server.getsockname()
        assert host == "127.0.0.1"
        others = [address for address in interfaces().values() if address != "127.0.0.1"]
        for address in others:
            with socket.socket() as probe, pytest.raises(OSError):
                probe.settimeout(2)
                probe.connect((address, port))


def test_doctor_is_told_what_will_be_used_and_why() -> None:
    told = {f.topic: f for f in findings.elastic_findings(ElasticSettings(interface=interface_of("127.0.0.1")))}
    assert told["interface"].level == "advice" and "this one host" in told["interface"].message
    assert told["backend"].level == "ok" and "gloo" in told["backend"].message
    assert "in place" in told["resize"].message
    told = {f.topic: f for f in findings.elastic_findings(ElasticSettings(interface="nope0", way="restart"))}
    assert told["interface"].level == "WRONG" and "nope0" in told["interface"].message
    assert "restart" in told["resize"].message
