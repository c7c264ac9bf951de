"""``submit``: what it accepts, what it refuses, and that nothing is lost or half-done."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_calls import Cli, QuietBackend

from prompttuner.client import asking as ask
from prompttuner.config import Settings
from prompttuner.controller.run import tick_once
from prompttuner.errors import NotOwner
from prompttuner.spec.job import ALIASES

JOB_ID = re.compile(r"j[a-z2-7]{9}")


def inbox(home: Path) -> list[Path]:
    return list((home / "spool" / "inbox").glob("*.json"))


def test_a_spec_file_becomes_a_job_at_once(cli: Cli, spec: Path, home: Path, backend: QuietBackend) -> None:
    done = cli("submit", spec, "--deadline", "30m", "--name", "mine")
    assert done.code == 0
    assert JOB_ID.search(done.out)
    assert "(in 30m)" in done.out
    job = cli("status", "--json").json["jobs"][0]
    assert (job["name"], job["state"], job["slo"], job["target"]) == ("mine", "queued", "open", "loss<=0.5")
    assert len(backend.asked) == 1
    assert inbox(home) == []


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_every_short_name_of_a_field_is_a_flag_too(cli: Cli, spec: Path, alias: str) -> None:
    value: object = {"lr": 0.25, "init": "vocab"}.get(alias, 7)
    done = cli("submit", spec, f"--{alias}", value, "--json")
    assert cli("show", done.json[0]["job"], "--json").json["spec"][ALIASES[alias]] == value


def test_flags_alone_are_enough_and_win_over_the_file(cli: Cli, spec: Path) -> None:
    alone = cli("submit", "--model", "small", "--train", "train.jsonl", "--eval", "eval.jsonl", "--target",
                "exact_match>=0.9", "--lr", "0.3", "--json")  # fmt: skip
    assert alone.code == 0
    over = cli("submit", spec, "--target", "rougeL>=0.2", "--json")
    shown = [cli("show", done.json[0]["job"], "--json").json for done in (alone, over)]
    assert [one["target"] for one in shown] == ["exact_match>=0.9", "rougeL>=0.2"]
    assert shown[0]["spec"]["learning_rate"] == 0.3


def test_a_grid_submits_every_combination(cli: Cli, spec: Path) -> None:
    done = cli("submit", spec, "--grid", "lr=1e-2,3e-2,seed=0,1", "--hold", "--json")
    assert len({one["job"] for one in done.json}) == 4
    assert {one["name"] for one in done.json} == {
        f"sweep-lr{lr}-seed{seed}" for lr in ("1e-2", "3e-2") for seed in (0, 1)
    }


def test_dry_run_checks_and_changes_nothing(cli: Cli, spec: Path, home: Path) -> None:
    done = cli("submit", spec, "--dry-run")
    assert done.code == 0
    assert "Nothing was submitted" in done.out
    assert not home.exists()
    as_json = cli("submit", spec, "--dry-run", "--json", "--grid", "seed=1,2").json
    assert [one["seed"] for one in as_json["jobs"]] == [1, 2]
    assert cli("submit", spec, "--dry-run", "--target", "nonsense").code == 2


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--target", "bleu>=1"], 2, "unknown metric"),
        (["--target", "loss>=1"], 2, "improves towards"),
        (["--deadline", "2001-01-01T00:00Z"], 2, "in the past"),
        (["--deadline", "tomorrow"], 2, "cannot be read"),
        (["--train", "gone.jsonl"], 2, "no such file"),
        (["--model", "./no-such-folder"], 8, "no such folder"),
        (["--grid", "lrr=1"], 2, "did you mean"),
        (["--initial-prompt", "best"], 2, "none of auto"),
        (["--max-gpus", "99"], 2, "above batch_size"),
        (["--batch-size", "many"], 2, "--batch-size"),
        (["--learning-rat", "1"], 2, "--learning-rate"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left(
    cli: Cli, spec: Path, home: Path, args: list[str], code: int, says: str
) -> None:
    done = cli("submit", spec, *args)
    assert done.code == code
    assert says in done.err
    assert not home.exists()


def test_one_bad_job_of_a_sweep_submits_none(cli: Cli, spec: Path, home: Path) -> None:
    done = cli("submit", spec, "--grid", "target=loss<=0.5,loss<=-1")
    assert (done.code, inbox(home)) == (2, [])


def test_empty_and_broken_data_name_file_and_line(cli: Cli, spec: Path) -> None:
    Path("train.jsonl").write_text("")
    assert "holds no samples" in cli("submit", spec).err
    Path("train.jsonl").write_text('{"input": "a", "target": "b"}\n{"input": \n')
    assert "train.jsonl, line 2: broken JSON" in cli("submit", spec).err


def test_a_model_folder_without_weights_is_refused(cli: Cli, spec: Path) -> None:
    folder = Path("model")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    done = cli("submit", spec, "--model", folder)
    assert done.code == 8
    assert "no weights" in done.err


def test_an_unknown_key_in_a_file_names_the_nearest(cli: Cli, spec: Path) -> None:
    spec.write_text(spec.read_text() + 'dead_line = "30m"\n')
    done = cli("submit", spec)
    assert done.code == 2
    assert "unknown key 'dead_line'; did you mean 'deadline'" in done.err
    assert str(spec) in done.err


def test_nothing_to_submit_says_what_is_needed(cli: Cli) -> None:
    done = cli("submit")
    assert done.code == 2
    assert "--model" in done.err


def test_while_another_controller_runs_the_request_waits_in_the_inbox(
    cli: Cli, spec: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def owned(_settings: object) -> None:
        raise NotOwner("owned by another")

    monkeypatch.setattr("prompttuner.controller.run.tick_once", owned)
    monkeypatch.setattr(ask, "ANSWER_WAIT_S", 0.2)
    done = cli("submit", spec, "--name", "later")
    assert done.code == 0
    assert "left in the inbox" in done.err
    job_id = JOB_ID.search(done.out)
    assert job_id is not None
    assert [json.loads(path.read_text())["job"] for path in inbox(home)] == [job_id[0]]
    assert "requested" in cli("status").out
    missing = cli("show", job_id[0])
    assert (missing.code, "still in the inbox" in missing.err) == (3, True)
    monkeypatch.undo()


def test_a_request_that_the_last_owner_did_not_see_is_applied_once_that_has_let_go(
    cli: Cli, spec: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[object] = []

    def owned_at_first(settings: Settings) -> object:
        tries.append(settings)
        if len(tries) < 3:
            raise NotOwner("a command makes its one tick")
        return tick_once(settings)

    monkeypatch.setattr("prompttuner.controller.run.tick_once", owned_at_first)
    monkeypatch.setattr(ask, "AGAIN_S", 0.01)
    done = cli("submit", spec, "--hold", "-q")
    assert (done.code, done.err, len(tries)) == (0, "", 3)
    assert inbox(home) == []
    assert cli("show", done.out.strip(), "--json").json["state"] == "held"


def test_a_request_left_while_owned_is_applied_by_the_next_tick(
    cli: Cli, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ask, "_try_tick", lambda *_: False)
        patch.setattr(ask, "ANSWER_WAIT_S", 0.0)
        done = cli("submit", spec, "--hold", "-q")
    job_id = done.out.strip()
    assert cli("tick").code == 0
    assert cli("show", job_id, "--json").json["state"] == "held"


def test_a_full_disk_is_a_clear_message_and_nothing_is_left(
    cli: Cli, spec: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("prompttuner.controller.requests.write_message", full)
    done = cli("submit", spec)
    assert done.code == 6
    assert "o space left on" in done.err
    assert inbox(home) == []


def test_ctrl_c_while_ticking_leaves_the_request_and_exits_130(
    cli: Cli, spec: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_settings: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prompttuner.controller.run.tick_once", interrupted)
        done = cli("submit", spec)
    assert done.code == 130
    assert len(inbox(home)) == 1
    assert cli("tick").code == 0
    assert len(cli("status", "--json").json["jobs"]) == 1
