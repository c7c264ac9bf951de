"""What squeue, sacct and scontrol print is read right, whatever the version; nonsense never becomes an end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.slurm.answers import (
    STATES,
    native_of,
    parse_duration,
    parse_record,
    parse_sacct,
    parse_squeue,
    parse_time,
)
from prompttuner.slurm.backend import Native

RECORDED = Path(__file__).parent / "recorded"
UUID = "6f1f2f3e-0000-4000-8000-000000000001"
VERSIONS = sorted(path.name for path in RECORDED.iterdir() if path.is_dir())


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_queue(version: str) -> None:
    rows = {row.job_id: row for row in parse_squeue((RECORDED / version / "squeue.txt").read_text())}
    assert rows["4711"].state is Native.RUNNING
    assert rows["4711"].uuid == UUID
    assert rows["4711"].node == "gpu-01"
    assert rows["4711"].start_at == parse_time("2026-11-20T08:00:00")
    assert rows["4711"].ends_at == parse_time("2026-11-20T12:00:00")
    assert rows["4712"].state is Native.PENDING
    assert rows["4712"].start_at is None
    assert rows["4712"].node is None
    assert rows["4712"].reason.startswith(("Resources", "ReqNodeNotAvail"))
    assert rows["4713"].state is Native.COMPLETING
    assert rows["4714"].state is Native.ENDED
    assert rows["4714"].word == "PREEMPTED"
    assert rows["4716"].uuid is None, "somebody's own job, with a bar in its name"
    assert not any("_" in number for number in rows), "job arrays are not ours"


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_accounting(version: str) -> None:
    rows = {row.job_id: row for row in parse_sacct((RECORDED / version / "sacct.txt").read_text())}
    assert {number: rows[number].word for number in ("4720", "4721", "4722", "4723")} == {
        "4720": "COMPLETED", "4721": "CANCELLED by 1000", "4722": "TIMEOUT", "4723": "NODE_FAIL",
    }  # fmt: skip
    assert all(rows[number].state is Native.ENDED for number in ("4720", "4721", "4722", "4723"))
    assert rows["4724"].state is Native.RUNNING
    assert rows["4720"].uuid == UUID
    assert set(rows) == {"4720", "4721", "4722", "4723", "4724"}, "steps are left out"


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_job(version: str) -> None:
    (record,) = parse_record((RECORDED / version / "scontrol_job.txt").read_text())
    assert record["JobId"] == "4711"
    assert record["JobName"] == f"pt-{UUID}"
    assert record["JobState"] == "RUNNING"
    assert parse_time(record["EndTime"]) == parse_time("2026-11-20T12:00:00")


def test_every_known_word_has_a_meaning_and_new_ones_are_unknown() -> None:
    assert all(native_of(word) is state for word, state in STATES.items())
    for word in ("TELEPORTED", "", " ", "CANCELLED?", "completed2", "by 1000"):
        assert native_of(word) is Native.UNKNOWN
    assert native_of("CANCELLED by 1000") is Native.ENDED
    assert native_of("CANCELLED+") is Native.ENDED


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800), ("30:15", 1815), ("1:00:00", 3600), ("01:30:05", 5405), ("2-00", 172800), ("1-12:30", 131400),
        ("7-00:00:00", 604800), ("UNLIMITED", float("inf")), ("NONE", None), ("", None), ("a:b", None), ("-1", None),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=400))
def test_nonsense_is_no_answer(text: str) -> None:
    words = {"|".join(line.split("|")[1:2]).split(" ")[0].rstrip("+") for line in text.splitlines()}
    for rows in (parse_squeue(text), parse_sacct(text)):
        assert all(row.state is not Native.ENDED or row.word.split()[0].rstrip("+") in words for row in rows)
    parse_record(text)
    parse_time(text)
    parse_duration(text)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_torn_answer_never_turns_a_living_job_into_an_ended_one(data: st.DataObject) -> None:
    """Cut, flip or drop anything in an answer about living jobs: no row may say that one of them has ended."""
    line = f"4711|RUNNING|None|gpu-01|2026-11-20T08:00:00|2026-11-20T12:00:00|pt-{UUID}"
    text = list("\n".join([line] * 3))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] = data.draw(st.sampled_from(["", "|", "\n", "\0", "x", " ", "9", "é"]))
    assert not [row for row in parse_squeue("".join(text)) if row.state is Native.ENDED]
