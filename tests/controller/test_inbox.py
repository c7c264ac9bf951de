"""Whatever lies in the inbox, ticks go on: what makes no sense is refused or set aside, what is fine is applied."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lab import Lab

from prompttuner.controller import inbox
from prompttuner.controller.inbox import pending_requests
from prompttuner.files import read_json, write_bytes, write_json
from prompttuner.slurm.spool import read_own_json
from prompttuner.states import JobState

SPEC = {
    "model": "/models/tiny",
    "target": {"metric": "loss", "op": "<=", "value": 0.1},
    "max_iterations": 400,
    "batch_size": 8,
    "initial_prompt": "vocab",
    "submitted_at": 1.7e9,
}

NO_REQUESTS = [
    b"{",
    b"[" * 100_000,
    b"1" * 6000,
    b"[1]",
    b"{}",
    b'{"id": "a/b", "kind": "cancel", "job": "j"}',
    b'{"id": "../../b", "kind": "cancel", "job": "j"}',
    b'{"id": "a\\u0000b", "kind": "cancel", "job": "j"}',
    b'{"id": "a\\udcffb", "kind": "cancel", "job": "j"}',
    json.dumps({"id": "a" * 300, "kind": "cancel", "job": "j"}).encode(),
]

SENSELESS = [
    {"kind": ["cancel"], "job": "j000000001"},
    {"kind": "\ud800", "job": "j000000001"},
    {"kind": "update", "job": "j000000001", "priority": 10**30},
    {"kind": "update", "job": "j000000001", "priority": float("inf")},
    {"kind": "update", "job": "j000000001", "deadline_at": float("inf")},
    {"kind": "update", "job": "j000000001", "deadline_at": float("nan")},
    {"kind": "update", "job": "j000000001", "deadline_at": 1e300},
    {"kind": "scale", "job": "j000000001", "members": float("inf")},
    {"kind": "submit", "job": "jbad", "spec": {}},
    *(
        {"kind": "submit", "job": "jbad", "at": 1.7e9, "spec": {**SPEC, **change}}
        for change in (
            {"max_iterations": "many"},
            {"max_iterations": 0},
            {"batch_size": None},
            {"target": "loss<=0.1"},
            {"target": {"metric": "loss"}},
            {"target": {"metric": "loss", "op": "<=", "value": "little"}},
            {"eval_every": "often"},
            {"deadline_at": "soon"},
            {"deadline_at": float("inf")},
            {"submitted_at": 1e300},
            {"min_gpus": 10**30},
            {"min_gpus": 2, "max_gpus": 1},
            {"priority": "high"},
            {"setup": 5},
        )
    ),
]


def put(lab: Lab, name: str, content: Any) -> Path:
    path = lab.spool.inbox / f"{name}.json"
    write_bytes(path, content) if isinstance(content, bytes) else write_json(path, content)
    return path


def test_what_is_no_request_is_set_aside_and_the_others_are_applied(lab: Lab) -> None:
    for number, content in enumerate(NO_REQUESTS):
        put(lab, f"no{number}", content)
    (lab.spool.inbox / "folder.json").mkdir()
    loose = put(lab, "loose", {"id": "loose", "kind": "cancel", "job": "j"})
    loose.chmod(0o666)
    foreign = put(lab, "foreign", {"id": "foreign", "kind": "cancel", "job": "j000000001"})
    if os.getuid() == 0:
        os.chown(foreign, 65534, 65534)
    else:
        foreign.chmod(0o620)
    job = lab.submit(ita=5)
    lab.run(30)
    assert lab.job(job).state == JobState.DONE
    assert pending_requests(lab.spool) == []
    assert len(list(lab.spool.inbox.glob("*.broken"))) == len(NO_REQUESTS) + 3
    assert len(list(lab.spool.replies.iterdir())) == 1


def test_requests_that_no_tick_could_carry_out_are_refused_and_the_others_are_applied(lab: Lab) -> None:
    first = lab.submit(ita=5)
    lab.tick()
    for number, content in enumerate(SENSELESS):
        put(lab, f"no{number}", {"id": f"no{number}", "by": "me", **content})
    second = lab.submit(ita=6)
    lab.run(60)
    assert [lab.job(job).state for job in (first, second)] == [JobState.DONE] * 2
    replies = [read_json(lab.spool.reply(f"no{number}")) for number in range(len(SENSELESS))]
    assert [content for content, reply in zip(SENSELESS, replies, strict=True) if reply["ok"]] == []
    assert all(reply["message"] for reply in replies)


def test_a_request_that_a_network_file_system_cannot_show_now_is_applied_later(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = lab.submit(ita=5)
    (path,) = pending_requests(lab.spool)

    def gone(_path: Path) -> bytes:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(inbox, "read_own_json", lambda _path: None)
        patch.setattr(Path, "read_bytes", gone)
        lab.run(3)
        assert pending_requests(lab.spool) == [path] and lab.controller.inbox.unread == {path}
    shown = iter([None])  # it is there again in the middle of the look
    monkeypatch.setattr(inbox, "read_own_json", lambda path: next(shown, read_own_json(path)))
    lab.run(30)
    lab.run(30)
    assert lab.job(job).state == JobState.DONE
    assert list(lab.spool.inbox.iterdir()) == [] and not lab.controller.inbox.unread


def test_a_second_submission_under_the_same_id_leaves_the_frozen_spec_alone(lab: Lab) -> None:
    job = lab.submit(ita=300)
    lab.run(5)
    before = (lab.spool.job(job) / "spec.json").read_bytes()
    put(lab, "again", {"id": "again", "kind": "submit", "job": job, "spec": {**SPEC, "max_iterations": 7}})
    lab.tick()
    assert "submitted before" in read_json(lab.spool.reply("again"))["message"]
    assert (lab.spool.job(job) / "spec.json").read_bytes() == before


def test_a_diverged_evaluation_does_not_stop_planning(lab: Lab) -> None:
    """A metric that is not a number arrives as NaN in progress.json and as null from the database."""
    job = lab.submit(ita=200, max_gpus=1)
    lab.run(15)
    path = next(lab.spool.job(job).glob("g*/*/progress.json"))
    lab.site.running()[0].silent = True
    for step in (5, 10):
        value = {**read_json(path), "evaluations": [[1, 0.5], [step, float("nan")]], "metric": float("nan")}
        write_json(path, value)
        os.utime(path, (lab.site.time + step,) * 2)
        lab.tick()
    assert lab.job(job).evaluations[1][1] is None
    lab.tick()
