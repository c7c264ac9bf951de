"""Looking at jobs and changing them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cli_calls import Cli
from sqlalchemy import update

from prompttuner.db.store.store import Store
from prompttuner.db.tables.models import Job

COMMANDS = ["show", "explain", "logs", "result", "cancel", "hold", "release"]


def change_row(home: Path, job_id: str, **values: object) -> None:
    with Store.open(home / "state.db") as store:
        ownership = store.acquire()
        store.transact(ownership, lambda session: session.execute(update(Job).where(Job.id == job_id).values(**values)))
        store.release(ownership)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_job_is_not_found(cli: Cli, held: str, command: str) -> None:
    done = cli(command, "jnosuchjob")
    assert done.code == 3
    assert "'jnosuchjob'" in done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_without_any_state_a_job_is_not_found(cli: Cli, home: Path, command: str) -> None:
    assert cli(command, "jx").code == 3
    assert not (home / "state.db").exists()


def test_status_without_any_state_is_empty_and_creates_nothing(cli: Cli, home: Path) -> None:
    assert cli("status").code == 0
    assert cli("status", "--json").json["jobs"] == []
    assert not home.exists()


def test_a_job_is_found_by_id_beginning_and_name(cli: Cli, held: str) -> None:
    for word in (held, held[:5], "held-one"):
        assert cli("show", word, "--json").json["id"] == held


def test_show_and_explain_in_words_and_as_json(cli: Cli, held: str) -> None:
    shown = cli("show", held)
    assert "held-one" in shown.out
    assert "loss<=0.5" in shown.out
    assert "best effort" in shown.out
    explained = cli("explain", held)
    assert f"{held} is held" in explained.out
    assert f"Now: held; `prompttuner release {held}` lets it go on" in explained.out
    assert cli("explain", held, "--json").json["events"][0]["job"] == held


def test_logs_show_events_evaluations_agents_and_errors_in_order(cli: Cli, held: str, home: Path) -> None:
    member = home / "spool" / "jobs" / held / "g1" / "agent-abcdefgh"
    agent = home / "spool" / "agents" / "agent-abcdefgh"
    member.mkdir(parents=True)
    agent.mkdir(parents=True)
    (member / "progress.json").write_text('{"at": 2.0, "evaluations": [[20, 2.5], [40, 1.25]]}')
    journal = [{"at": 1.0, "event": "lease", "job": held}, {"at": 1.5, "event": "lease", "job": "jother"}]
    (agent / "journal.jsonl").write_text("".join(json.dumps(one) + "\n" for one in journal) + '{"at": 1.7, "ev')
    error = {"at": time.time() + 9, "kind": "data", "message": "line 3 is broken", "trace": "Trace of it"}
    (member / "error.json").write_text(json.dumps(error))
    lines = [json.loads(line) for line in cli("logs", held, "--json").out.splitlines()]
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert [(line["by"], line["what"]) for line in lines[:3]] == [
        ("agent agent-ab", "lease"),
        ("g1/agent-ab", "evaluated"),
        ("g1/agent-ab", "evaluated"),
    ]
    assert lines[2]["data"] == {"iteration": 40, "metric": 1.25}
    assert any(line["by"] == "controller" for line in lines[3:-1])
    assert lines[-1]["why"] == "line 3 is broken"
    assert "Trace of it" in cli("logs", held).out


def test_agents_output_is_shown_on_demand(cli: Cli, held: str, home: Path) -> None:
    (home / "spool" / "jobs" / held / "g1" / "agent1").mkdir(parents=True)
    (home / "spool" / "agents" / "agent1").mkdir(parents=True)
    (home / "spool" / "agents" / "agent1" / "log.txt").write_text("out of cheese\n")
    assert "out of cheese" not in cli("logs", held).out
    assert "out of cheese" in cli("logs", held, "--agents").out


def test_following_logs_ends_with_the_job(cli: Cli, held: str) -> None:
    assert cli("cancel", held).code == 0
    followed = cli("logs", held, "--follow")
    assert followed.code == 0
    assert "cancel" in followed.out


def test_update_changes_deadline_and_priority(cli: Cli, held: str) -> None:
    before = time.time()
    assert cli("update", held, "--deadline", "2h", "--priority", "5").code == 0
    after = time.time()
    job = cli("show", held, "--json").json
    assert job["priority"] == 5
    assert before + 7200 <= job["deadline_at"] <= after + 7200
    assert cli("update", held, "--deadline", "none").code == 0
    assert cli("show", held, "--json").json["deadline_at"] is None


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "nothing to change"),
        (["--deadline", "2001-01-01T00:00Z"], "in the past"),
        (["--deadline", "2031-01-01T00:00"], "no time zone"),
        (["--priority", "9999"], "--priority"),
    ],
)
def test_a_wrong_update_is_refused(cli: Cli, held: str, args: list[str], says: str) -> None:
    done = cli("update", held, *args)
    assert done.code == 2
    assert says in done.err


def test_hold_and_release(cli: Cli, held: str) -> None:
    assert cli("release", held).code == 0
    assert cli("show", held, "--json").json["state"] == "queued"
    again = cli("release", held)
    assert again.code == 4
    assert "not held" in again.err
    assert cli("hold", held).code == 0
    assert cli("show", held, "--json").json["state"] == "held"
    for command in ("status", "explain"):
        assert f"release {held}` lets it" in " ".join(cli(command, held).out.split())


def test_cancelling_ends_a_job_once(cli: Cli, held: str) -> None:
    assert cli("cancel", held, "--json").json[0]["applied"]
    again = cli("cancel", held)
    assert again.code == 4
    assert "has ended (cancelled)" in again.err
    assert cli("result", held).code == 4


def test_one_unknown_job_among_several_changes_none(cli: Cli, held: str) -> None:
    assert cli("cancel", held, "jnosuchjob").code == 3
    assert cli("show", held, "--json").json["state"] == "held"


def test_scale_sets_and_frees_the_number_of_gpus(cli: Cli, held: str) -> None:
    assert cli("scale", held, "2").code == 0
    assert cli("show", held, "--json").json["scale_to"] == 2
    assert cli("scale", held, "auto").code == 0
    assert cli("show", held, "--json").json["scale_to"] is None


@pytest.mark.parametrize(
    ("count", "says"),
    [("0", "not a number"), ("many", "not a number"), ("17", "batch size of 16"), ("16", "may be held here")],
)
def test_a_wrong_number_of_gpus_is_refused(cli: Cli, held: str, count: str, says: str) -> None:
    done = cli("scale", held, count)
    assert done.code == 2
    assert says in done.err


def test_a_result_is_shown_and_copied(cli: Cli, held: str, home: Path) -> None:
    now = time.time()
    change_row(home, held, state="done", finished_at=now, deadline_at=now + 60, step=40, metric=0.4)
    folder = home / "spool" / "jobs" / held / "result"
    gone = cli("result", held)
    assert (gone.code, "no longer at" in gone.err) == (3, True)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"ita": 40, "metric": 0.4}')
    (folder / "adapter_config.json").write_text("{}")
    assert cli("result", held, "--json").json["result"]["ita"] == 40
    assert cli("result", held, "--to", "copy").code == 0
    assert sorted(path.name for path in Path("copy").iterdir()) == ["adapter_config.json", "result.json"]
    assert cli("result", held, "--to", "copy").code == 2
    nowhere = cli("result", held, "--to", "copy/result.json/below")
    assert nowhere.code == 1 and "cannot write copy/result.json/below: Not a directory" in nowhere.err
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("nothing")  # a file that cannot be copied
    broken = cli("result", held, "--to", "other")
    assert (broken.code, "could not be copied to other" in broken.err, Path("other").exists()) == (1, True, False)
    assert [path.name for path in Path().glob(".other*")] == []
    assert cli("show", held, "--json").json["slo"] == "met"
    assert "met, " in cli("status").out


def test_a_missed_deadline_is_said(cli: Cli, held: str, home: Path) -> None:
    change_row(home, held, deadline_at=time.time() - 120)
    assert "missed by 2m" in cli("status").out
    assert cli("show", held, "--json").json["slo"] == "missed"


def test_status_filters_by_state(cli: Cli, held: str) -> None:
    assert len(cli("status", "--state", "held", "--json").json["jobs"]) == 1
    assert cli("status", "--state", "done", "--json").json["jobs"] == []
    wrong = cli("status", "--state", "dead")
    assert wrong.code == 2
    assert "states are:" in wrong.err


def test_a_job_that_goes_on_is_not_hidden_by_newer_ones_that_have_ended(cli: Cli, held: str, spec: Path) -> None:
    newer = [cli("submit", spec, "--hold", "-q").out.strip() for _ in range(2)]
    assert cli("cancel", *newer).code == 0
    cut = cli("status", "--limit", 2, "--json")
    assert [job["id"] for job in cut.json["jobs"]] == [held, newer[1]] and "--limit" in cut.err
    assert [job["id"] for job in cli("status", "--limit", 1, "--json").json["jobs"]] == [held]
    whole = cli("status", "--json")
    assert [job["id"] for job in whole.json["jobs"]] == [held, *newer] and whole.err == ""


def test_ended_jobs_older_than_a_day_are_listed_on_demand(cli: Cli, held: str, home: Path) -> None:
    change_row(home, held, state="cancelled", finished_at=time.time() - 2 * 86400)
    assert cli("status", "--json").json["jobs"] == []
    assert len(cli("status", "--all", "--json").json["jobs"]) == 1
