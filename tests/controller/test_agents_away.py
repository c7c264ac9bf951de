"""Agents that are late, hosts whose clocks differ, a spool that is stale or cannot be read: nothing is lost by it."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import pytest
from lab import Lab

from prompttuner.controller.observe import reports as facts
from prompttuner.db.queries import allocations, events
from prompttuner.protocol.wire import Message
from prompttuner.states import JobState


def test_stale_reads_of_the_spool_delay_but_do_not_confuse(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may show any file as it was some polls ago, each file for itself."""
    dice, seen = random.Random(3), defaultdict[Path, deque[Any]](lambda: deque(maxlen=8))
    fresh = {name: getattr(facts, name) for name in ("read_message", "read_own")}

    def stale(name: str) -> Any:
        def read(kind: type[Message], path: Path) -> Any:
            seen[path].append(fresh[name](kind, path))
            return dice.choice(seen[path])

        return read

    for name in fresh:
        monkeypatch.setattr(facts, name, stale(name))
    jobs = [lab.submit(ita=60), lab.submit(ita=90), lab.submit(ita=40)]
    lab.run(40)
    lab.site.preempt(lab.site.running()[0])
    lab.run(200)
    assert [lab.job(job).state for job in jobs] == [JobState.DONE] * 3
    assert [lab.job(job).ita for job in jobs] == [60, 90, 40]
    assert len(lab.site.admitted) == len(set(lab.site.admitted))


def test_a_spool_that_cannot_be_read_for_a_while_loses_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    job = lab.submit(ita=200, max_gpus=1)
    lab.run(15)
    real = facts.read_own

    def broken(_kind: type[Message], path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(facts, "read_own", broken)
    lab.run(20)
    assert lab.job(job).state == JobState.RUNNING
    assert any("Permission denied" in text for text in lab.warnings)
    monkeypatch.setattr(facts, "read_own", real)
    lab.run(60)
    assert lab.job(job).state == JobState.DONE
    assert len(lab.site.submitted) == 1


def test_late_heartbeats_make_an_agent_suspect_and_then_trusted_again(lab: Lab) -> None:
    job = lab.submit(ita=900, max_iterations=1000, max_gpus=1)
    lab.run(15)
    agent = lab.site.running()[0]
    agent.silent = True
    lab.run(80)
    agent.silent = False
    lab.run(200)
    kinds = [row.kind for row in lab.store.query(events.latest)]
    assert "agent_suspect" in kinds and "agent_back" in kinds
    assert lab.job(job).state == JobState.DONE
    assert len(lab.site.submitted) == 1, "a silent agent was replaced without proof"


def test_the_end_of_a_walltime_does_not_depend_on_the_hosts_clock(
    tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's host is two hours behind: only its own durations count."""
    monkeypatch.setattr("time.time", lambda: lab.site.time - 7200)
    lab.settings = lab.settings.model_copy(
        update={"local": lab.settings.local.model_copy(update={"walltime_s": 1000.0})}
    )
    lab.crash()
    lab.submit(ita=300, max_gpus=1)
    lab.run(15)
    (row,) = lab.store.query(allocations.find)
    assert row.ends_at is not None and 900 < row.ends_at - lab.site.time < 1000


def test_the_delay_with_which_agents_see_the_spool_is_measured_and_shown(lab: Lab) -> None:
    from prompttuner.cli.doctor.checks import spool_delay

    assert list(spool_delay(lab.settings)) == []
    lab.submit(ita=50, max_gpus=1)
    lab.run(30)
    (finding,) = spool_delay(lab.settings)
    assert "agents saw changes of the spool after" in finding.text


def test_files_that_make_no_sense_stop_neither_ticks_nor_other_jobs(lab: Lab) -> None:
    hurt, sound = lab.submit(ita=900, max_iterations=1000, max_gpus=1), lab.submit(ita=60, max_gpus=1)
    lab.run(15)
    (member,) = lab.job(hurt).members
    (lab.spool.root / "gate.json").write_text("[]")
    (lab.spool.root / "cleaned.json").write_text('{"at": "noon"}')
    lab.crash()
    hurt_files = lab.spool.agent(member) / "status.json", lab.spool.job(hurt) / "plan.json"
    for _ in range(40):
        lab.site.step(1.0)
        whole = [path.read_bytes() for path in hurt_files]
        for path in hurt_files:
            path.write_text("[7]")
        lab.tick()
        for path, content in zip(hurt_files, whole, strict=True):
            path.write_bytes(content)
    lab.tick()
    assert lab.job(hurt).state == JobState.RUNNING
    assert lab.job(sound).state == JobState.DONE
    assert any("makes no sense" in text for text in lab.warnings)


def test_a_clock_that_was_put_back_does_not_stop_forgetting(lab: Lab) -> None:
    lab.site.time += 10 * 365 * 86400
    lab.tick()
    lab.site.time -= 10 * 365 * 86400
    stamp = lab.spool.root / "cleaned.json"
    before = stamp.read_text()
    lab.tick()
    assert stamp.read_text() != before
