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
from prompttuner.trace.importers.gentd26 import import_gentd26, read_loads
from prompttuner.trace.importers.gentd26 import profiles_of as loads_profiles
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
    assert told(loaded) == [("slurm-5", 0, 120, 1), ("slurm-7", 30, 240, 2), ("slurm-14_3", 240, 9, 1)]
    assert [job.user for job in loaded.jobs] == ["bob", "ann", "eve"]
    assert [problem.line for problem in loaded.problems] == [8, 9]
    assert loaded.left_out == {
        "a step, not a job": 1,
        "never ran": 1,
        "asked for no GPU": 1,
        "had not ended": 1,
        "asked for more than 8 GPUs": 1,
    }


@pytest.mark.parametrize("state", ["EXPEDITING", "POWER_UP_NODE", "RESV_DEL_HOLD", "SPECIAL_EXIT", "RUNNING"])
def test_a_job_that_waits_or_runs_in_any_of_slurms_words_has_not_ended(state: str, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_text(
        "JobID|User|Submit|ElapsedRaw|AllocTRES|State\n"
        f"1|ada|2026-01-01T00:00:00|60|gres/gpu=1|{state}\n2|ada|2026-01-01T00:00:00|60|gres/gpu=1|COMPLETED\n"
    )
    loaded = import_sacct(dump, Wanted())
    assert [job.id for job in loaded.jobs] == ["slurm-2"] and loaded.left_out == {"had not ended": 1}


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


def test_lines_of_a_resized_or_requeued_job_are_one_job(tmp_path: Path) -> None:
    path = tmp_path / "sacct.txt"
    rows = [
        "1|ann|2026-03-01T10:00:00|100|gres/gpu=4|RESIZING",
        "1|ann|2026-03-01T10:03:00|50|gres/gpu=2|COMPLETED",  # "submitted" when it was shrunk
        "2|bob|2026-03-01T10:01:00|30|gres/gpu=1|PREEMPTED",
        "2|bob|2026-03-01T10:05:00|0||REQUEUED",
        "2|bob|2026-03-01T10:09:00|60|gres/gpu=1|COMPLETED",
        "3|bob|2026-03-01T10:02:00|30|gres/gpu=1|NODE_FAIL",
        "3|bob|2026-03-01T10:09:00|||PENDING",
        "4|eve|2026-03-01T10:02:00|30|gres/gpu=1|COMPLETED",
        "4|ann|2026-03-01T10:09:00|30|gres/gpu=1|COMPLETED",
    ]
    path.write_text(HEADER + "\n".join(rows) + "\n")
    loaded = import_sacct(path, Wanted())
    assert told(loaded) == [("slurm-1", 0, 500, 4), ("slurm-2", 60, 90, 1), ("slurm-4", 120, 30, 1)]
    assert loaded.left_out == {"had not ended": 1}
    assert [str(problem) for problem in loaded.problems] == [
        "line 10: job 4 is on line 9 with another user: an id that was given twice"
    ]


def test_the_order_of_a_sacct_dump_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "sacct.txt"
    rows = ["1|u|170|50|gres/gpu=2|COMPLETED", "1|u|100|20|gres/gpu=4|RESIZING", "2|u|130|5|gres/gpu=1|FAILED"]
    path.write_text(HEADER + "\n".join(rows) + "\n")
    assert told(import_sacct(path, Wanted())) == [("slurm-1", 0, 180, 4), ("slurm-2", 30, 5, 1)]


def swf_line(number: int, submit: int, run_s: float, status: int) -> str:
    return f"{number} {submit} 5 {run_s} 1 -1 -1 1 -1 -1 {status} 7 1 1 1 1 -1 -1\n"


def test_swf_takes_what_completed_and_counts_the_rest_by_its_status(tmp_path: Path) -> None:
    path = tmp_path / "log.swf"
    path.write_text(
        swf_line(1, 0, 90, 1)  # swapped out twice: this line has the sum
        + swf_line(1, 0, 40, 2)
        + swf_line(1, 60, 30, 2)
        + swf_line(1, 120, 20, 3)
        + swf_line(2, 10, 30, 0)
        + swf_line(2, 10, 30, 4)
        + swf_line(3, 20, 30, 5)
        + swf_line(4, 30, 30, -1)
        + swf_line(5, 40, 30, 6)
        + swf_line(4, 50, 30, 1)
    )
    loaded = import_swf(path, Wanted())
    assert told(loaded) == [("swf-1", 0, 90, 1), ("swf-4", 30, 30, 1)]
    assert loaded.left_out == {
        "a partial execution (its job has a line of its own)": 4,
        "failed": 1,
        "was cancelled": 1,
    }
    assert [problem.line for problem in loaded.problems] == [9, 10], "an unknown status, and a number used twice"


GENTD26 = "gmt_create,predict_type,predict_status,exec_time_seconds,groupId,checkpoint_model_version_id,num_lora\n"


def test_gentd26_keeps_model_and_user_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    path.write_text(
        GENTD26 + "2024-11-15 16:58:00,TXT_2_IMG,SUCCEED,32.0,G0001,M0003,0\n"
        "2024-11-15 16:57:50,TXT_2_IMG,SUCCEED,43.0,G0000,M0000,2\n"
        "2024-11-15 16:58:10,TXT_2_IMG,FAILED,43.0,G0000,M0000,2\n"
        "2024-11-15 16:58:10,TXT_2_IMG,PENDING,,G0000,M0000,2\n"
        "2024-11-15 16:58:20,TXT_2_IMG,SUCCEED,0.0,G0000,M0000,2\n"
        "2024-11-15 16:58:30,TXT_2_IMG,SUCCEED,5.0,G0000,,2\n"
        "2024-11-15 16:58:40,TXT_2_IMG,SUCCEED,fast,G0000,M0000,2\n"
        "15 Nov,TXT_2_IMG,SUCCEED,5.0,G0000,M0000,2\n"
    )
    loaded = import_gentd26(path, Wanted(factor=10))
    assert told(loaded) == [("gentd26-3", 0, 430, 1), ("gentd26-2", 10, 320, 1)]
    assert [(job.llm, job.user) for job in loaded.jobs] == [("M0000", "G0000"), ("M0003", "G0001")]
    assert loaded.left_out == {
        "its status is FAILED": 1,
        "its status is PENDING": 1,
        "never ran": 1,
        "names no base model": 1,
    }
    assert [problem.line for problem in loaded.problems] == [8, 9]


def test_loads_are_drawn_by_name_and_seed_from_those_measured(tmp_path: Path) -> None:
    path = tmp_path / "loads.csv"
    path.write_text("timestamp_anon,value,container_ip\n1,2639.0,a\n2,39010.0,b\n3,0.0,b\n4,22700.0,c\n")
    loads = read_loads(path)
    assert loads.tolist() == [2.639, 39.01, 22.7]
    names = [f"M{k:04d}" for k in range(60)]
    made = loads_profiles(names, loads, "here", seed=1)
    assert {profile.switch_s for profile in made} == set(loads.tolist())
    assert all(profile.start_s - profile.switch_s == pytest.approx(10.0) for profile in made)
    assert loads_profiles(names[5:7], loads, "here", seed=1) == made[5:7], "whatever the other LLMs are"
    assert loads_profiles(names, loads, "here", seed=2) != made
    path.write_text("value\n-1\n")
    with pytest.raises(DataError, match=r"loads.csv line 2: value is -1, below 0"):
        read_loads(path)
    path.write_text("value\n0\n")
    with pytest.raises(DataError, match="no load above 0 ms"):
        read_loads(path)


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
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(SpecError, match="factor"):
            Wanted(factor=factor)


@needs_traces
@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("philly/philly_to_2017-11-14.csv", 36769),
        ("chronus/trace_job_Philly_SLO.csv", 30614),
        ("azure_llm/AzureLLMInferenceTrace_conv.csv", 19366),
        ("alibaba_2026/lora_request_trace_to_2024-11-30.csv", 14033),
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
    elif name.startswith("alibaba"):
        loaded = import_gentd26(path, Wanted(factor=10))
    else:
        loaded = import_elasticflow(path, read_throughputs(TRACES / "elasticflow" / "throughputs_A100"))
    assert len(loaded.require_clean().jobs) == jobs
    write_trace(tmp_path / "t.csv", loaded.jobs)
    assert read_trace(tmp_path / "t.csv").require_clean().jobs == loaded.jobs
