"""``prompttuner simulate`` on a small generated trace."""

import json

import pytest

from prompttuner.cli.frame import root as frame
from prompttuner.trace.format import write_trace
from prompttuner.trace.generate import Workload, generate


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    write_trace(path, generate(Workload(gpus=4, length_s=900, seed=2)))
    return path


def run(*words):
    return frame.run([str(word) for word in words])


def test_compares_policies_as_table_and_json(trace, capsys):
    assert run("simulate", trace, "--gpus", 4, "--slo", "1.0", "--policy", "prompttuner,sbatch") == 0
    table = capsys.readouterr().out
    assert "prompttuner" in table and "sbatch" in table and "missed" in table
    assert run("simulate", trace, "--gpus", 4, "--slo", "1.0", "--policy", "edf", "--bound", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    (edf,) = data["policies"]
    assert edf["violations"] >= data["bound"]["violations"] and edf["cost_gpu_s"] >= data["bound"]["work_gpu_s"]


def test_writes_outcomes_and_a_plot(trace, tmp_path, capsys):
    lines, image = tmp_path / "jobs.jsonl", tmp_path / "gpus.png"
    assert run("simulate", trace, "--policy", "edf", "--outcomes", lines, "--plot", image) == 0
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert rows and all(row["policy"] == "edf" and row["end_s"] >= row["start_s"] for row in rows)
    assert image.read_bytes().startswith(b"\x89PNG")


def test_bad_requests_are_told(trace, tmp_path, capsys):
    assert run("simulate", trace, "--policy", "nope") == 2
    assert "choose one of" in capsys.readouterr().err
    assert run("simulate", trace, "--slo", "fast") == 2
    assert "SLO multiple" in capsys.readouterr().err
    broken = tmp_path / "broken.csv"
    broken.write_text(trace.read_text() + "x,notanumber\n")
    assert run("simulate", broken, "--policy", "edf") == 2
    assert "--skip-broken" in capsys.readouterr().err
    assert run("simulate", broken, "--policy", "edf", "--skip-broken") == 0


def figures(capsys, *words):
    assert run("simulate", *words, "--json") == 0
    return json.loads(capsys.readouterr().out)["policies"]


def test_variants_of_policies_are_rows_of_their_own(trace, tmp_path, capsys):
    words = "prompttuner,prompttuner:bank=off:patience=0.1,infless:bank=off"
    rows = figures(capsys, trace, "--gpus", 4, "--slo", "1.0", "--policy", words, "--log", tmp_path / "logs")
    assert [row["policy"] for row in rows] == words.split(",")
    assert rows[0]["lookups"] > 0 and rows[1]["lookups"] == rows[2]["lookups"] == 0
    assert {path.stem for path in (tmp_path / "logs").iterdir()} == set(words.split(","))


def test_ablations_leave_out_one_rule_at_a_time_where_a_policy_has_it(trace, capsys):
    words = ["--policy", "prompttuner,sbatch", "--without", "resize,bank"]
    rows = figures(capsys, trace, "--gpus", 8, "--slo", "0.7", *words)
    names = ["prompttuner", "prompttuner:resize=off", "prompttuner:bank=off", "sbatch", "sbatch:bank=off"]
    assert [row["policy"] for row in rows] == names
    resizes = {row["policy"]: row["resizes"] for row in rows}
    assert resizes["prompttuner"] > 0 == resizes["prompttuner:resize=off"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--policy", "prompttuner:resizes=off"], "has no switch 'resizes': choose one of bank, warm_pool"),
        (["--policy", "prompttuner:resize=maybe"], "prompttuner:resize is on or off"),
        (["--policy", "infless:keep_s=long"], "infless:keep_s takes a number"),
        (["--policy", "sbatch:gpus=1.5"], "sbatch:gpus takes a whole number"),
        (["--policy", "nobody:bank=off"], "there is no policy 'nobody'"),
        (["--policy", "edf", "--without", "resize"], "choose from bank"),
        (["--policy", "prompttuner", "--without", "keep"], "choose from bank, warm_pool"),
    ],
)
def test_wrong_switches_name_the_right_ones(trace, capsys, words, told):
    assert run("simulate", trace, *words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "place", "told"),
    [
        ("--plot", "no/such/a.png", "make the folder no/such first, or name another place with --plot"),
        ("--plot", "folder", "Is a directory; name another place with --plot"),
        ("--outcomes", "no/such/a.jsonl", "make the folder no/such first, or name another place with --outcomes"),
        ("--outcomes", "file/a.jsonl", "Not a directory; name another place with --outcomes"),
        ("--log", "file", "Not a directory; name another place with --log"),
        ("--log", "file/logs", "Not a directory; name another place with --log"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_anything_is_simulated(
    trace, tmp_path, capsys, monkeypatch, option, place, told
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prompttuner.sim.simulate", lambda *_: pytest.fail("simulated in vain"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert run("simulate", trace, option, place) == 1
    said = capsys.readouterr().err
    assert f"cannot write {place}: " in said and told in said


def test_a_picture_that_cannot_be_drawn_is_told(trace, tmp_path, capsys):
    assert run("simulate", trace, "--plot", tmp_path / "gpus.doc") == 2
    assert "choose .png, .svg or .pdf" in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end_is_told(trace, capsys):
    assert run("simulate", trace, "--policy", "edf", "--outcomes", "/dev/full") == 6
    assert "no space left on the disk (/dev/full)" in capsys.readouterr().err
