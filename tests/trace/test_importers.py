"""Importers: small files of each form, broken rows named by line, others counted; public traces where present."""

import math
import os
from pathlib import Path

import pytest

from prompttuner.errors import DataError, SpecError
from prompttuner.profiles import load_profiles, save_profile
from prompttuner.trace.format import read_trace, write_trace
from prompttuner.trace.importers.common import Wanted
from prompttuner.trace.importers.elasticflow import (
    import_elasticflow,
    profiles_of,
    read_throughputs,
    speedups_of,
)
from prompttuner.trace.importers.logs import import_sacct, import_swf
from prompttuner.trace.importers.tables import import_azure, import_chronus, import_philly
from prompttuner.trace.rows import Loaded

TRACES = Path(os.environ.get("PROMPTTUNER_TRACES", "/none"))
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason="PROMPTTUNER_TRACES names no folder of traces")


def told(loaded: Loaded) -> list[tuple[str, float, float, int]]:
    return [(job.id, job.submit_s, round(job.work_s, 6), job.requested_gpus) for job in loaded.jobs]


def test_sacct_dump(tmp_path: Path) -> None:
    path = tmp_path / "sacct.txt"
    path.write_text(
        "JobID|User|Submit|ElapsedRaw|AllocTRES|State\n"
        "7|ann|2026-03-01T10:00:30|120|billing=4,cpu=4,gres/gpu:a100=2,gres/gpu=2,mem=8G,node=1|COMPLETED\n"
        "5|bob|2026-03-01T10:00:00|60|cpu=1,gres/gpu=1|CANCELLED by 1000\n"
        "5.batch||2026-03-01T10:00:00|60|cpu=1|COMPLETED\n"
        "8|bob|2026-03-01T10:01:00|0|cpu=1,gres/gpu=1|FAILED\n"
        "9|bob|2026-03-01T10:01:00|50|cpu=8,mem=1G|COMPLETED\n"
        "10|bob|2026-03-01T10:01:00|50||PENDING\n"
        "11|bob|yesterday|50|cpu=1,gres/gpu=1|COMPLETED\n"
        "12|bob|2026-03-01T10:02:00|1:20|gres/gpu=1|COMPLETED\n"
        "13|bob|2026-03-01T10:02:00|10|gres/gpu=64|COMPLETED\n"
        "5|bob|2026-03-01T10:03:00|60|gres/gpu=1|COMPLETED\n"
        "14_3|eve|2026-03-01T10:04:00|9|gres/gpu:h100=1|TIMEOUT\n"
    )
    loaded = import_sacct(path, Wanted())
    assert told(loaded) == [("slurm-5", 0, 60, 1), ("slurm-7", 30, 240, 2), ("slurm-14_3", 240, 9, 1)]
    assert [job.user for job in loaded.jobs] == ["bob", "ann", "eve"]
    assert [problem.line for problem in loaded.problems] == [8, 9, 11]
    assert loaded.left_out == {
        "a step, not a job": 1,
        "never ran": 1,
        "asked for no GPU": 1,
        "had not ended": 1,
        "asked for more than 8 GPUs": 1,
    }


def test_sacct_dump_with_unix_times_and_more_fields(tmp_path: Path) -> None:
    path = tmp_path / "sacct.txt"
    path.write_text("JobID|JobName|User|Submit|ElapsedRaw|AllocTRES|State\n1|x|u|1700000000|5|gres/gpu=1|COMPLETED\n")
    assert told(import_sacct(path, Wanted()).require_clean()) == [("slurm-1", 0, 5, 1)]
    path.write_text("JobID|User|Submit|State\n")
    with pytest.raises(DataError, match="no column ElapsedRaw, AllocTRES"):
        import_sacct(path, Wanted())


HEADER = "JobID|User|Submit|ElapsedRaw|AllocTRES|State\n"


def test_quotes_in_a_sacct_dump_are_letters_and_swallow_no_row(tmp_path: Path) -> None:
    path = tmp_path / "sacct.txt"
    rows = ['1|"ann|17|5|gres/gpu=1|COMPLETED', "2|bob|18|5|gres/gpu=1|COMPLETED", '3|b"b|19|5|gres/gpu=1|COMPLETED']
    path.write_text(HEADER + "\n".join(rows) + "\n")
    assert [job.user for job in import_sacct(path, Wanted()).require_clean().jobs] == ['"ann', "bob", 'b"b']


@pytest.mark.parametrize(
    ("tres", "gpus"),
    [
        ("cpu=4,gres/gpu=2,gres/gpu:a100=2,gres/gpumem=80G,gres/gpuutil=50", 2),
        ("gres/gpu:a100=2,gres/gpu:h100=1", 3),
        ("gres/gpu:a100=2,gres/gpu:h100=1,gres/gpu=3", 3),
        ("gres/gpu:1g.10gb=1,node=1", 1),
    ],
)
def test_gpus_of_a_sacct_job_are_counted_once_each(tres: str, gpus: int, tmp_path: Path) -> None:
    path = tmp_path / "sacct.txt"
    path.write_text(f"{HEADER}1|u|17|5|{tres}|COMPLETED\n")
    assert [job.requested_gpus for job in import_sacct(path, Wanted()).require_clean().jobs] == [gpus]


def test_swf(tmp_path: Path) -> None:
    path = tmp_path / "log.swf"
    rest = "-1 -1 {req} -1 -1 1 {user} 1 1 1 1 -1 -1"
    path.write_text(
        "; a comment\n"
        f"1 100 5 60 16 {rest.format(req=16, user=3)}\n"
        f"2 50 5 30 -1 {rest.format(req=3, user=-1)}\n"
        "3 60 5 30\n"
        f"4 x 5 30 1 {rest.format(req=1, user=1)}\n"
        f"5 70 5 -1 1 {rest.format(req=1, user=1)}\n"
    )
    loaded = import_swf(path, Wanted(), cpus_per_gpu=4)
    assert told(loaded) == [("swf-2", 0, 30, 1), ("swf-1", 50, 240, 4)]
    assert [job.user for job in loaded.jobs] == ["", "user-3"]
    assert [problem.line for problem in loaded.problems] == [4, 5]
    assert loaded.left_out == {"never ran": 1}


def test_philly(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(
        "timestamp,duration,num_gpus,gpu_time,cluster\n"
        "2017-10-01 00:01:00,40.0,2,80.0,abc\n"
        "2017-10-01 00:00:00,50.0,1,50.0,abc\n"
        "2017-13-01 00:00:00,50.0,1,50.0,abc\n"
        "2017-10-01 00:02:00,9.0,1,9.0,abc\n"
        "2017-10-01 00:02:00,nan,1,9.0,abc\n"
    )
    loaded = import_philly(path, Wanted(min_s=30))
    assert told(loaded) == [("philly-3", 0, 50, 1), ("philly-2", 60, 80, 2)]
    assert [problem.line for problem in loaded.problems] == [4, 6]
    assert loaded.left_out == {"ran for less than 30 s": 1}


def test_chronus_times_are_minutes_and_deadlines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text(
        "job_id,user,num_gpu,submit_time,iterations,model_name,duration,interval,expect_time_list,expect_value_list,"
        "best_effort,job_type\n"
        "0,u,4,10,1,m,30,8,45,10,0,strict\n"
        "1,u,1,12,1,m,30,8,40-60,10-5,0,strict\n"
        "2,u,1,14,1,m,30,8,0,0,1,best\n"
        "3,u,0,15,1,m,30,8,0,0,1,best\n"
    )
    jobs = import_chronus(path, Wanted()).require_clean().jobs
    assert [(job.submit_s, job.work_s, job.deadline_s) for job in jobs] == [
        (0, pytest.approx(7200), 2700), (120, pytest.approx(1800), 2520), (240, pytest.approx(1800), math.inf),
    ]  # fmt: skip


def test_rows_that_make_no_job_are_problems_of_their_line_and_stop_no_other(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text(
        "job_id,user,num_gpu,submit_time,duration,expect_time_list,best_effort\n"
        "0,u,4,10,30,0,0\n"  # a deadline at its submission
        "1,u,1,12,30,60,0\n"
        "2,u,1,12,1e308,60,0\n"
        "3,u,1,12,-1,60,0\n"
        "4,a\tb,1,12,30,60,0\n"
    )
    loaded = import_chronus(path, Wanted())
    assert [job.id for job in loaded.jobs] == ["chronus-1"]
    assert [problem.line for problem in loaded.problems] == [2, 4, 5, 6]
    assert "deadline_s" in loaded.problems[0].message and "below 0" in loaded.problems[2].message


@pytest.mark.parametrize("at", ["2023-11-16 18:17:03", "2023-11-16 18:17:03.25", "2023-11-16 18:17:03.250000+00:00"])
def test_azure_times_have_fractions_and_zones_of_any_form(at: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{at},4,1\n{at} or so,4,1\n{at},-4,1\n")
    loaded = import_azure(path, Wanted())
    assert [job.id for job in loaded.jobs] == ["azure-2"] and [problem.line for problem in loaded.problems] == [3, 4]


def test_azure_reads_seven_digits_of_a_second(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4,1\n2023-11-16 18:17:05.9799600,8,2\n"
    )
    assert told(import_azure(path, Wanted()).require_clean()) == [("azure-2", 0, 5, 1), ("azure-3", 2, 10, 1)]


def tables(folder: Path) -> Path:
    folder.mkdir()
    (folder / "net.csv").write_text("global_batch_size,1,2,4,8\n32,2.0,3.5,5.0,4.9\n64,1.0,1.9,,\n")
    return folder


def test_elasticflow_with_both_spellings_of_its_columns(tmp_path: Path) -> None:
    throughputs = read_throughputs(tables(tmp_path / "t"))
    assert throughputs == {"net-b32": ((1, 2.0), (2, 3.5), (4, 5.0)), "net-b64": ((1, 1.0), (2, 1.9))}
    assert speedups_of(throughputs)["net-b32"] == ((1, 1.0), (2, 1.75), (4, 2.5))
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text(
        "job_id,submission_time,num_iteration,model_name,deadline,batch_size,num_gpu\na,100,50,net,150,32,2\n"
    )
    new.write_text(
        "job_id,submit_time,iteration,model_name,ddl,batch_size,num_gpu,best_effort\n"
        "a,100,50,net,150,32,2,0\nb,101,50,net,150,32,2,1\nc,101,50,lost,150,32,2,1\n"
    )
    first = import_elasticflow(old, throughputs).require_clean().jobs
    second = import_elasticflow(new, throughputs)
    assert second.jobs[0] == first[0]
    assert (first[0].llm, first[0].step_s, first[0].max_gpus, first[0].deadline_s) == ("net-b32", 0.5, 4, 150)
    assert math.isinf(second.jobs[1].deadline_s)
    assert [problem.line for problem in second.problems] == [4]


def test_missing_throughputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no throughput tables"):
        read_throughputs(tmp_path)
    for row in ("32,,", "32,,4", "32,0,4"):
        (tmp_path / "net.csv").write_text(f"global_batch_size,1,2\n{row}\n")
        with pytest.raises(DataError, match="line 2: no throughput of one GPU"):
            read_throughputs(tmp_path)


def test_profiles_of_the_pools_have_the_tables_speedups(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "net.csv").write_text("global_batch_size,1,2,4,8\n32,2.0,4.0,3.8,5.0\n64,1.0,1.9,,\n")
    (profile,) = profiles_of(read_throughputs(tmp_path / "t"), ["net-b32"], "tables")
    assert (profile.name, profile.step_s) == ("net-b32", 0.5)
    assert profile.speedup == ((1, 1.0), (2, 2.0), (4, 2.0), (8, 2.5)), "more GPUs never count as slower"
    save_profile(tmp_path, profile)
    assert load_profiles([tmp_path]) == [profile] and "tables" in profile.origin and "stated" in profile.origin


def test_draws_depend_on_the_seed_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.swf"
    rest = "-1 -1 1 -1 -1 1 1 1 1 1 1 -1 -1"
    path.write_text("".join(f"{k} {k} 0 60 1 {rest}\n" for k in range(1, 40)))
    assert import_swf(path, Wanted(seed=1)).jobs == import_swf(path, Wanted(seed=1)).jobs
    assert import_swf(path, Wanted(seed=1)).jobs != import_swf(path, Wanted(seed=2)).jobs


def test_senseless_wishes_are_refused() -> None:
    with pytest.raises(SpecError, match="shortest"):
        Wanted(min_s=10, max_s=5)


@needs_traces
@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("philly/philly_to_2017-11-14.csv", 36769),
        ("chronus/trace_job_Philly_SLO.csv", 30614),
        ("azure_llm/AzureLLMInferenceTrace_conv.csv", 19366),
        ("elasticflow/195job.csv", 195),
        ("elasticflow/cluster01.csv", 1595),
    ],
)
def test_public_traces_import_without_a_broken_row(name: str, jobs: int, tmp_path: Path) -> None:
    path = TRACES / name
    if name.startswith("philly"):
        loaded = import_philly(path, Wanted(min_s=30, max_s=1800))
    elif name.startswith("chronus"):
        loaded = import_chronus(path, Wanted())
    elif name.startswith("azure"):
        loaded = import_azure(path, Wanted())
    else:
        loaded = import_elasticflow(path, read_throughputs(TRACES / "elasticflow" / "throughputs_A100"))
    assert len(loaded.require_clean().jobs) == jobs
    write_trace(tmp_path / "t.csv", loaded.jobs)
    assert read_trace(tmp_path / "t.csv").require_clean().jobs == loaded.jobs
