"""The trace format: what is written is read back equal, and broken rows are named by line."""

import gzip
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.errors import DataError
from prompttuner.trace.format import COLUMNS, dump_trace, read_trace, write_trace
from prompttuner.trace.job import TraceJob

names = st.text("abcXYZ019-_.,\"' é", min_size=1, max_size=12).filter(lambda s: s.strip() == s)
positive = st.floats(1e-6, 1e6)


@st.composite
def trace_jobs(draw: st.DrawFn) -> list[TraceJob]:
    ids = draw(st.lists(names, min_size=1, max_size=8, unique=True))
    jobs = []
    for name in ids:
        submit = draw(st.floats(0, 1e7))
        low = draw(st.integers(1, 8))
        jobs.append(
            TraceJob(
                id=name,
                submit_s=submit,
                llm=draw(names),
                iters=draw(positive),
                step_s=draw(positive),
                deadline_s=draw(st.just(math.inf) | st.floats(1, 1e6).map(lambda d, s=submit: s + d)),
                min_gpus=low,
                max_gpus=draw(st.integers(low, 64)),
                bank_factor=draw(st.floats(0.01, 2)),
                task=draw(st.just("") | names),
                requested_gpus=draw(st.integers(0, 64)),
                priority=draw(st.integers(-5, 5)),
                stop_on_miss=draw(st.booleans()),
            )
        )
    return sorted(jobs, key=lambda job: (job.submit_s, job.id))


@settings(deadline=None, max_examples=60)
@given(jobs=trace_jobs(), suffix=st.sampled_from([".csv", ".jsonl"]))
def test_written_trace_reads_back_equal(jobs: list[TraceJob], suffix: str, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("trace") / f"t{suffix}"
    write_trace(path, jobs)
    assert read_trace(path).require_clean().jobs == jobs


def test_broken_rows_are_named_by_line_and_the_good_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "# a comment\n"
        "id,submit_s,llm,iters,step_s,deadline_s\n"
        "a,0,m,10,1,\n"
        "b,zero,m,10,1,\n"
        "\n"
        "c,1,m,10\n"
        "d,5,m,10,1,4\n"
        "a,6,m,10,1,\n"
        "e,7,m,-1,1,inf\n"
        "f,8,m,10,1,90\n"
    )
    loaded = read_trace(path)
    assert [job.id for job in loaded.jobs] == ["a", "f"]
    assert [problem.line for problem in loaded.problems] == [4, 6, 7, 8, 9]
    assert "submit_s is 'zero'" in loaded.problems[0].message
    assert "already on line 3" in loaded.problems[3].message
    with pytest.raises(DataError, match=r"5 broken rows, 2 good(.|\n)*line 4(.|\n)*--skip-broken"):
        loaded.require_clean()


def test_broken_json_lines_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good = '{"id": "a", "submit_s": 0, "llm": "m", "iters": 3, "step_s": 1, "stop_on_miss": true}'
    path.write_text(f'{good}\n{{"id": \n[1]\n{{"id": "b", "submit_s": 0, "llm": "m", "iters": 3}}\n')
    loaded = read_trace(path)
    assert [job.stop_on_miss for job in loaded.jobs] == [True]
    assert [problem.line for problem in loaded.problems] == [2, 3, 4]
    assert loaded.problems[2].message == "no step_s"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("id,submit_s\na,1\n", "no column llm, iters, step_s .*trace import"),
        ("id,submit_s,llm,iters,step_s\n", "holds no jobs"),
    ],
)
def test_unusable_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_trace(path)


def test_unknown_columns_are_errors_unless_they_are_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,submit_s,llm,iters,step_s,dedline_s\na,0,m,1,1,9\n")
    assert "unknown column dedline_s" in read_trace(path).problems[0].message
    path.write_text("id,submit_s,llm,iters,step_s,x_lab\na,0,m,1,1,9\n")
    assert read_trace(path).require_clean().jobs[0].id == "a"


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no trace file"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"PK\xff\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_trace(tmp_path / "b.csv")


def test_header_names_every_field() -> None:
    header = dump_trace([TraceJob("a", 0, "m", 1, 1)]).splitlines()[0]
    assert tuple(header.split(",")) == COLUMNS


def test_a_line_is_a_row_and_line_numbers_stay_right_after_a_line_break_in_a_field(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('id,submit_s,llm,iters,step_s\n"a\nb",0,m,1,1\nc,1,m,1\nd,2,m,1,1\n')
    loaded = read_trace(path)
    assert [job.id for job in loaded.jobs] == ['b"', "d"]
    assert [(problem.line, problem.message[:15]) for problem in loaded.problems] == [
        (2, "not CSV: unexpe"),
        (4, "4 fields, the h"),
    ]


@pytest.mark.parametrize("name", ["#a", " a", "a\nb", "", "\x1b[31m"])
def test_names_that_no_text_file_could_give_back_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"id must not|texts must"):
        TraceJob(name, 0, "m", 1, 1)


def test_a_quote_that_is_never_closed_spoils_its_own_row_alone(tmp_path: Path) -> None:
    """Not even where a later row happens to close it, which would make one row of several."""
    path = tmp_path / "t.csv"
    path.write_text('id,submit_s,llm,iters,step_s,x_note\na,0,m,1,1,"so\nb,1,m,1,1,x\nc,2,m,1,1,"and so\nd,3,m,1,1,\n')
    loaded = read_trace(path)
    assert [job.id for job in loaded.jobs] == ["b", "d"]
    assert [problem.line for problem in loaded.problems] == [2, 4]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('"iters": 1' + "0" * 400, "iters is 1000000000000000000000000000000000000000..., not a number"),
        ('"iters": 1' + "0" * 5000, "not JSON that can be read"),
        ('"iters": ' + "[" * 100_000, "not JSON"),
        ('"iters": true', "iters is True, not a number"),
        ('"iters": NaN', "not a finite number"),
        ('"iters": 1e300', "iters x step_s must be"),
        ('"iters": 1, "submit_s": 1e15', "submit_s must be"),
        ('"iters": 1, "deadline_s": 1e99', "deadline_s must be"),
        ('"iters": 1, "max_gpus": 99999999999999999999', "max_gpus must be"),
        ('"iters": 1, "requested_gpus": 99999999999999999999', "requested_gpus"),
        ('"iters": 1, "priority": -99999999999999999999', "priority must"),
    ],
)
def test_figures_that_no_job_has_are_problems_of_their_row(row: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": "a", "llm": "m", "step_s": 1, "submit_s": 0, ' + row + "}\n")
    problems = read_trace(path).problems
    assert [problem.line for problem in problems] == [1] and says in problems[0].message


def test_packed_traces_are_read_and_other_bytes_named_by_line(tmp_path: Path) -> None:
    text = "id,submit_s,llm,iters,step_s\r\na,0,m,1,1\r\n"
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    assert [job.id for job in read_trace(tmp_path / "t.csv.gz").require_clean().jobs] == ["a"]
    (tmp_path / "half.gz").write_bytes(gzip.compress(text.encode())[:-12])
    with pytest.raises(DataError, match="broken gzip file"):
        read_trace(tmp_path / "half.gz")
    (tmp_path / "latin.csv").write_bytes((text + "é,0,m,1,1\n").encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text \(line 3\)"):
        read_trace(tmp_path / "latin.csv")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,submit_s,llm,iters,step_s,id\na,0,m,1,1,b\n")
    with pytest.raises(DataError, match="more than one column id"):
        read_trace(path)
