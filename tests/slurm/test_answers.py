"""What squeue, sacct and scontrol print is read right, whatever the version; nonsense never becomes an end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.slurm.answers import parse_record, parse_sacct, parse_squeue
from prompttuner.slurm.site.site import parse_partitions
from prompttuner.slurm.words import STATES, Native, native_of, parse_duration, parse_time

ANSWERS = Path(__file__).parent / "answers"
"""Recorded ones, and others written by hand: see the README there."""
UUID = "6f1f2f3e-0000-4000-8000-000000000001"
VERSIONS = sorted(path.name for path in ANSWERS.glob("written-*"))


@pytest.mark.parametrize("version", VERSIONS)
def test_queue_as_each_release_prints_it(version: str) -> None:
    rows = {row.job_id: row for row in parse_squeue((ANSWERS / version / "squeue.txt").read_text())}
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
def test_accounting_as_each_release_prints_it(version: str) -> None:
    rows = {row.job_id: row for row in parse_sacct((ANSWERS / version / "sacct.txt").read_text())}
    assert {number: rows[number].word for number in ("4720", "4721", "4722", "4723")} == {
        "4720": "COMPLETED", "4721": "CANCELLED by 1000", "4722": "TIMEOUT", "4723": "NODE_FAIL",
    }  # fmt: skip
    assert all(rows[number].state is Native.ENDED for number in ("4720", "4721", "4722", "4723"))
    assert rows["4724"].state is Native.RUNNING
    assert rows["4720"].uuid == UUID
    assert set(rows) == {"4720", "4721", "4722", "4723", "4724"}, "steps are left out"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_as_each_release_prints_it(version: str) -> None:
    (record,) = parse_record((ANSWERS / version / "scontrol_job.txt").read_text())
    assert record["JobId"] == "4711"
    assert record["JobName"] == f"pt-{UUID}"
    assert record["JobState"] == "RUNNING"
    assert parse_time(record["EndTime"]) == parse_time("2026-11-20T12:00:00")


def test_recorded_answers_of_a_real_cluster() -> None:
    folder = ANSWERS / "recorded-22.05.8"
    queue = {row.job_id: row for row in parse_squeue((folder / "squeue.txt").read_text())}
    assert sorted(queue, key=int) == ["4", "5", "6", "7", "8", "9", "10", "12"], "all but the job array"
    assert (queue["6"].state, queue["6"].uuid, queue["6"].node) == (Native.RUNNING, UUID, "n2")
    assert queue["6"].ends_at == parse_time("2026-11-21T20:52:27")
    assert (queue["7"].state, queue["7"].reason, queue["7"].node) == (Native.PENDING, "Resources", None)
    assert queue["7"].start_at == parse_time("2026-11-21T20:52:27"), "Slurm's estimate"
    assert {queue[number].state for number in ("8", "9", "12")} == {Native.ENDED}
    assert queue["12"].reason == "NonZeroExitCode"
    assert queue["10"].uuid is None
    accounted = {row.job_id: row for row in parse_sacct((folder / "sacct.txt").read_text())}
    words = {number: row.word for number, row in accounted.items()}
    assert words == {"6": "RUNNING", "7": "PENDING", "8": "COMPLETED", "9": "CANCELLED by 0", "12": "FAILED"}
    assert (accounted["7"].node, accounted["7"].start_at) == (None, None)
    running, pending = parse_record((folder / "scontrol_job.txt").read_text())
    assert (running["JobState"], running["NodeList"], running["Comment"]) == ("RUNNING", "n2", UUID)
    assert (pending["JobState"], pending["NodeList"], pending["TresPerNode"]) == ("PENDING", "", "gres:gpu:fake:2")
    partitions = {one.name: one for one in parse_partitions((folder / "scontrol_partition.txt").read_text(), {}, "OFF")}
    assert (partitions["gpu"].walltime_s, partitions["gpu"].default) == (7 * 86400, True)
    assert (partitions["spare"].walltime_s, partitions["spare"].preemptable) == (None, True)
    assert partitions["short"].walltime_s == 300


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
