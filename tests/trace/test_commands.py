"""``prompttuner trace``: import, generate, stats."""

import json
from pathlib import Path

import pytest

from prompttuner.cli.frame import root as frame
from prompttuner.trace.format import read_trace
from prompttuner.trace.stats import trace_stats
from prompttuner.trace.window import load_of


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path / "home"))

    def run(*args: object) -> tuple[int, str, str]:
        code = frame.run([str(arg) for arg in args])
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return code, out.out, out.err

    return run


def test_generate_then_stats_then_window(call) -> None:
    code, _, _ = call("trace", "generate", "-o", "t.jsonl", "--gpus", 16, "--load", 0.9, "--seed", 3, "--json")
    assert code == 0
    code, out, _ = call("trace", "stats", "t.jsonl", "--gpus", 16, "--plot", "t.png", "--json")
    figures = json.loads(out)
    assert code == 0 and figures["jobs"] == len(read_trace(Path("t.jsonl")).jobs)
    assert figures["load"] == pytest.approx(0.9, rel=0.1)
    assert Path("t.png").read_bytes().startswith(b"\x89PNG")
    code, _, _ = call(
        "trace", "import", "prompttuner", "t.jsonl", "-o", "w.csv", "--start", 600, "--length", 1800, "--gpus", 8,
        "--load", 0.5, "--slo", "1.5",
    )  # fmt: skip
    jobs = read_trace(Path("w.csv")).jobs
    assert code == 0 and 0.3 < load_of(jobs, 8, 1800) <= 0.5
    assert all(job.deadline_s == pytest.approx(job.submit_s + 1.5 * job.work_s) for job in jobs)


def test_equal_options_give_equal_files(call) -> None:
    for name in ("a.csv", "b.csv"):
        assert call("trace", "generate", "-o", name, "--seed", 9)[0] == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


def test_broken_rows_stop_an_import_unless_told_otherwise(call) -> None:
    Path("s.txt").write_text(
        "JobID|User|Submit|ElapsedRaw|AllocTRES|State\n1|u|soon|5|gres/gpu=1|COMPLETED\n2|u|17|5|gres/gpu=1|COMPLETED\n"
    )
    code, _, err = call("trace", "import", "sacct", "s.txt", "-o", "t.csv")
    assert code == 2 and "line 2" in err and "--skip-broken" in err and not Path("t.csv").exists()
    code, _, err = call("trace", "import", "sacct", "s.txt", "-o", "t.csv", "--skip-broken")
    assert code == 0 and "skipped line 2" in err
    assert [job.id for job in read_trace(Path("t.csv")).jobs] == ["slurm-2"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("import", "pbs", "x", "-o", "t.csv"), "no importer 'pbs'"),
        (("import", "elasticflow", "x", "-o", "t.csv"), "--throughputs"),
        (("import", "swf", "none.swf", "-o", "t.csv"), "no trace file"),
        (("generate", "-o", "t.csv", "--slo", "fast"), "SLO multiple"),
        (("generate", "-o", "t.csv", "--load", "0"), "load must lie"),
        (("stats", "none.csv"), "no trace file"),
    ],
)
def test_bad_input_is_named(call, args: tuple[str, ...], says: str) -> None:
    code, _, err = call("trace", *args)
    assert code == 2 and says in err


def test_options_that_would_mean_nothing_are_refused(call) -> None:
    assert call("trace", "generate", "-o", "t.csv", "--gpus", 4, "--length", 600)[0] == 0
    for extra, says in (
        (("--max-gpus", 4), "do not apply to prompttuner"),
        (("--load", 0.5), "--load needs a window"),
        (("--load", 0, "--start", 0), "--load needs a window"),
        (("--profiles", "p"), "says nothing of speed-ups"),
        (("--start", 1e6), "was submitted in the window"),
    ):
        code, _, err = call("trace", "import", "prompttuner", "t.csv", "-o", "w.csv", *extra)
        assert code == 2 and says in err and not Path("w.csv").exists()


def test_a_window_thickened_by_copies_says_how_often_its_jobs_stand_there(call) -> None:
    Path("t.csv").write_text("id,submit_s,llm,iters,step_s\na,5,m,10,1\nb,6,m,10,1\n")
    args = ("trace", "import", "prompttuner", "t.csv", "-o", "w.csv", "--start", 0, "--length", 500, "--gpus", 1)
    code, out, err = call(*args, "--load", 0.8)
    assert code == 0 and "jobs     40" in out and "up to 20 times" in err
    assert json.loads(call(*args, "--load", 0.8, "--json")[1])["copies"] == 20
    assert "times" not in call(*args, "--load", 0.2)[2]


def test_elasticflow_import_writes_profiles_that_simulate_takes(call) -> None:
    Path("tables").mkdir()
    Path("tables/net.csv").write_text("global_batch_size,1,2\n32,1.0,1.5\n64,1.0,2.0\n")
    Path("e.csv").write_text("job_id,submit_time,iteration,model_name,ddl,batch_size,num_gpu\na,0,100,net,75,32,2\n")
    args = ("trace", "import", "elasticflow", "e.csv", "--throughputs", "tables", "-o", "t.csv")
    assert call(*args, "--profiles", "p")[0] == 0 and [path.name for path in Path("p").iterdir()] == ["net-b32.json"]
    simulate = ("simulate", "t.csv", "--gpus", 2, "--policy", "edf", "--json")
    code, out, err = call(*simulate, "--profile", "p")
    assert code == 0 and "note:" not in err
    assert json.loads(out)["policies"][0]["violations"] == 1, "66.7 s at best, after a start-up of 21 s"
    code, out, err = call(*simulate)
    assert code == 0 and "no profile of net-b32: the stated default" in err
    assert json.loads(out)["policies"][0]["violations"] == 0, "51.3 s, with the default speed-up"
    Path("p/other.json").write_text(Path("p/net-b32.json").read_text().replace("net-b32", "net-b33"))
    assert "the profile of net-b33 is not used: the trace has net-b32" in call(*simulate, "--profile", "p")[2]
    Path("none").mkdir()
    code, _, err = call(*simulate, "--profile", "none")
    assert code != 0 and "no profiles (*.json) in none" in err


def test_a_gentd26_window_simulates_with_profiles_of_the_measured_loads(call) -> None:
    Path("loads.csv").write_text("timestamp_anon,value\n1,22700.0\n")
    header = "gmt_create,predict_status,exec_time_seconds,groupId,checkpoint_model_version_id\n"
    rows = [f"2024-11-15 {10 + k:02d}:30:00,SUCCEED,30.0,G{k},M{k % 2}\n" for k in range(4)]
    Path("g.csv").write_text(header + "".join(rows))
    args = ("trace", "import", "gentd26", "g.csv", "--factor", 10, "--slo", "1.5", "-o", "t.csv")
    cut = (*args, "--window", 1, "--loads", "loads.csv", "--profiles", "p")
    assert call(*cut)[0] == 0 and sorted(path.name for path in Path("p").iterdir()) == ["M0.json", "M1.json"]
    assert [(job.submit_s, job.work_s) for job in read_trace(Path("t.csv")).jobs] == [(0, 300), (3600, 300)]
    code, out, err = call("simulate", "t.csv", "--gpus", 2, "--policy", "edf", "--profile", "p", "--json")
    assert code == 0 and "note:" not in err and json.loads(out)["policies"][0]["violations"] == 0
    for extra, says in (
        (("--window", 1, "--start", 5), "choose one"),
        (("--profiles", "p"), "go together"),
        (("--loads", "loads.csv"), "go together"),
        (("--factor", 0), "factor"),
    ):
        code, _, err = call(*args, *extra)
        assert code == 2 and says in err, extra


def test_an_import_of_which_nothing_is_left_says_why(call) -> None:
    Path("s.txt").write_text("JobID|User|Submit|ElapsedRaw|AllocTRES|State\n1|u|17|5|cpu=1|COMPLETED\n")
    code, _, err = call("trace", "import", "sacct", "s.txt", "-o", "t.csv")
    assert code == 2 and "1 asked for no GPU" in err
    Path("s.txt").write_text("JobID|User|Submit|ElapsedRaw|AllocTRES|State\n")
    assert "it has no rows" in call("trace", "import", "sacct", "s.txt", "-o", "t.csv")[2]


def test_stats_of_one_job_are_finite_where_they_can_be() -> None:
    from prompttuner.trace.job import TraceJob

    figures = trace_stats([TraceJob("a", 5, "m", 10, 2, deadline_s=45)])
    assert (figures["jobs"], figures["work_gpu_s"], figures["slo_multiple_p50"]) == (1, 20, 2)


def test_traces_of_any_form_can_be_drawn(call) -> None:
    """One job; no deadlines; more LLMs than colours, times that begin late, and multiples far apart."""
    header = "id,submit_s,llm,iters,step_s,deadline_s\n"
    far = [f"{k},{5e6 + k},llm-{k % 14},10,1,{5e6 + k + 10.0 ** (k % 6)}" for k in range(28)]
    for name, rows in (("one", ["a,0,m,1,1,"]), ("plain", ["a,0,m,1,1,", "b,9,m,2,1,"]), ("far", far)):
        Path(f"{name}.csv").write_text(header + "\n".join(rows) + "\n")
        code, _, err = call("trace", "stats", f"{name}.csv", "--plot", f"{name}.png")
        assert code == 0, err
        assert Path(f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_stats_of_times_far_apart_need_no_memory_for_the_gap() -> None:
    from prompttuner.trace.job import TraceJob

    jobs = [TraceJob(str(k), at, "m", 10, 2) for k, at in enumerate((0.0, 30.0, 59.0, 1e10))]
    figures = trace_stats(jobs)
    assert (figures["per_minute_max"], figures["span_s"]) == (3, 1e10)
    assert figures["per_minute_mean"] == pytest.approx(4 / (1e10 / 60), rel=1e-6)


def test_unwritable_output_is_an_error(call) -> None:
    code, _, err = call("trace", "generate", "-o", "no/such/t.csv")
    assert code == 1 and "cannot write no/such/t.csv" in err


def test_a_simulation_is_logged_and_reported(call) -> None:
    assert call("trace", "generate", "-o", "t.csv", "--gpus", 8, "--length", 900, "--seed", 2)[0] == 0
    code, out, err = call("simulate", "t.csv", "--policy", "edf,infless", "--gpus", 8, "--log", "logs", "--json")
    assert code == 0, err
    missed = {one["policy"]: one["violations"] for one in json.loads(out)["policies"]}
    for policy, count in missed.items():
        code, out, err = call("report", "--log", f"logs/{policy}.json", "--out", f"{policy}.html", "--json")
        assert code == 0, err
        jobs = len(read_trace(Path("t.csv")).jobs)
        assert json.loads(out)["Deadlines met"] == f"{jobs - count} of {jobs}"
        assert f"Simulation: {policy}" in Path(f"{policy}.html").read_text()
