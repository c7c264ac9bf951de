"""What crosses a process: read leniently, never with an exception, and written by its class alone."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompttuner.errors import SpoolError
from prompttuner.files import write_json
from prompttuner.protocol import agents, jobs, lookup
from prompttuner.protocol.agents import AgentSettings, AgentStatus, Order
from prompttuner.protocol.elastic import ElasticSettings
from prompttuner.protocol.files import read_message
from prompttuner.protocol.jobs import Done, Membership, Progress
from prompttuner.protocol.lookup import LookupReport
from prompttuner.protocol.wire import Message, Unread

CLASSES: list[type[Message]] = sorted(
    {
        value
        for module in (agents, jobs, lookup)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Message) and value is not Message
    },
    key=lambda cls: cls.__name__,
)
REQUIRED: dict[str, dict[str, Any]] = {
    "Membership": {"generation": 3, "members": ["a", "b"], "previous": [[2, ["a"]]]},
    "CheckpointPointer": {"step": 4},
    "StorePlace": {"host": "h", "port": 5, "token": "t"},
}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_what_is_written_is_read_again_by_every_class(cls: type[Message]) -> None:
    message = cls.expect(REQUIRED.get(cls.__name__, {}))
    assert cls.read(json.loads(json.dumps(message.to_json()))) == message


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_keys_of_the_future_are_ignored_by_every_class(cls: type[Message]) -> None:
    known = REQUIRED.get(cls.__name__, {})
    assert cls.read({**known, "of_the_future": {"x": 1}}) == cls.read(known)


@given(st.data())
def test_nothing_makes_reading_raise(data: st.DataObject) -> None:
    cls = data.draw(st.sampled_from(CLASSES))
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    value = data.draw(anything | st.dictionaries(st.sampled_from(names), anything, max_size=6))
    message = cls.read(value)
    assert isinstance(message, cls) or (isinstance(message, Unread) and message.why)


@pytest.mark.parametrize(
    ("cls", "value", "reason"),
    [
        (AgentStatus, {"beat": "four"}, "status.json: 'beat' is not a whole number but 'four'"),
        (AgentStatus, {"beat": True}, "status.json: 'beat' is not a whole number but True"),
        (Done, {"outcome": "fine"}, "done.json: 'outcome' is none of reached, exhausted, stopped but 'fine'"),
        (Membership, {"generation": 1}, "plan.json: 'members' is missing"),
        (Membership, {"generation": 1, "members": ["a", "a"]}, "plan.json: an agent is named twice"),
        (Progress, {"evaluations": [[1]]}, "progress.json: 'evaluations' is not a list of 2 but [1]"),
        (Order, [], "order.json: not an object but []"),
    ],
)
def test_what_makes_no_sense_is_answered_with_file_key_and_value(
    cls: type[Message], value: object, reason: str
) -> None:
    assert cls.read(value) == Unread(reason)
    with pytest.raises(SpoolError) as error:
        cls.expect(value)
    assert str(error.value) == reason


def test_a_null_where_none_is_possible_is_none_and_else_the_default() -> None:
    status = AgentStatus.expect({"model": None, "host": None, "left_s": None})
    assert (status.model, status.host, status.left_s) == (None, "", None)


def test_sparse_messages_leave_out_what_is_not_known() -> None:
    assert Progress(beat=1, phase="running", step=3).to_json() == {"beat": 1, "phase": "running", "step": 3}


def test_a_message_cannot_lose_a_field_on_its_way() -> None:
    """Every field is changed, written and read."""
    settings = AgentSettings(
        agent="a", pool="p", walltime_s=5.0, elastic=ElasticSettings(bank_dirs=("/b",)), stay_warm=False
    )
    for f in fields(AgentSettings):
        assert f.default is not MISSING or f.default_factory is not MISSING, "old spools lack new keys"
        assert AgentSettings.expect({f.name: settings.to_json()[f.name]}) == replace(
            AgentSettings(), **{f.name: getattr(settings, f.name)}
        )


def test_a_placeholder_and_half_a_file_count_as_nothing_yet(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    assert read_message(Progress, path) is None
    write_json(path, {})
    assert read_message(Progress, path) is None
    path.write_text('{"beat":')
    assert read_message(Progress, path) is None


def test_a_file_that_makes_no_sense_is_named_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "lookup.json"
    write_json(path, {"seconds": "long"})
    assert read_message(LookupReport, path) == Unread(
        f"{path} makes no sense: lookup.json: 'seconds' is not a number but 'long'"
    )
