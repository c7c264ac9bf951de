"""``prompttuner bank``: in and out, by name, with messages that help."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from cli_calls import Cli
from safetensors.numpy import load_file, save_file

from prompttuner.bank import Bank, Shelf
from prompttuner.bank.index.trial_log import Trial

LINE = '{"input": "a b", "target": "b a"}\n'


def add(cli: Cli, *args: object) -> str:
    done = cli("bank", "add", "--model", "small", *args, "--json")
    assert done.code == 0, done.err
    return str(json.loads(done.out)["id"])


def test_an_empty_bank_is_no_error(cli: Cli) -> None:
    for command in ("list", "stats", "check"):
        done = cli("bank", command)
        assert done.code == 0 and ("nothing is in the bank" in done.err) == (command != "check")
    assert json.loads(cli("bank", "list", "--json").out) == []


def test_what_is_added_is_listed_shown_exported_and_removed(cli: Cli, tmp_path: Path) -> None:
    prompt = np.random.default_rng(0).normal(size=(4, 128)).astype(np.float32)
    save_file({"prompt": prompt}, tmp_path / "p.safetensors")
    text = add(cli, "--text", "sort the letters", "--task", "sorting", "--licence", "CC0")
    soft = add(cli, "--file", tmp_path / "p.safetensors")
    assert {row["id"] for row in json.loads(cli("bank", "list", "--json").out)} == {text, soft}
    assert "sorting" in cli("bank", "list").out and "CC0" in cli("bank", "show", text[:8]).out
    assert cli("bank", "export", soft[:8], tmp_path / "out.safetensors").code == 0
    assert np.array_equal(load_file(tmp_path / "out.safetensors")["prompt"], prompt)
    assert cli("bank", "export", soft[:8], tmp_path / "out.txt").code == 2
    assert cli("bank", "export", text[:8], tmp_path / "out.txt").code == 0
    nowhere = cli("bank", "export", text[:8], "no/such/out.txt")
    assert nowhere.code == 1 and "cannot write no/such/out.txt: No such file or directory; make the" in nowhere.err
    assert (tmp_path / "out.txt").read_text() == "sort the letters\n"
    assert cli("bank", "remove", text[:8]).code == 0
    assert [row["id"] for row in json.loads(cli("bank", "list", "--json").out)] == [soft]
    assert json.loads(cli("bank", "stats", "--json").out)[0]["entries"] == 1


def test_the_own_bank_is_private(cli: Cli, home: Path) -> None:
    add(cli, "--text", "sort")
    assert stat.S_IMODE((home / "bank").stat().st_mode) == 0o700


def test_unknown_and_ambiguous_words_say_what_to_do(cli: Cli) -> None:
    for number in range(17):  # by the pigeonhole two of them begin alike
        add(cli, "--text", f"prompt {number}")
    ids = [row["id"] for row in json.loads(cli("bank", "list", "--json").out)]
    double = next(i[0] for i in ids if sum(j[0] == i[0] for j in ids) > 1)
    for word in ("zzz", double):
        done = cli("bank", "show", word)
        assert done.code == 3 and "bank list" in done.err


def test_import_names_what_it_refuses(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text('{"text": "one"}\nrubbish\n{"text": "two"}\n')
    done = cli("bank", "import", path, "--model", "small")
    assert done.code == 0 and "2 new" in done.out and "many.jsonl:2" in done.err
    assert "2 known" in cli("bank", "import", path, "--model", "small").out
    path.write_text("{}\n")
    assert cli("bank", "import", path, "--model", "small").code == 2


def test_publish_makes_a_group_readable_copy(cli: Cli, home: Path, tmp_path: Path) -> None:
    entry = add(cli, "--text", "sort")
    shared = tmp_path / "shared"
    nowhere = cli("bank", "publish", entry[:8], "--to", "/proc/none")
    assert nowhere.code == 1 and "cannot write /proc/none: No such file or directory; make" in nowhere.err
    assert cli("bank", "publish", entry[:8], "--to", shared).code == 0
    assert stat.S_IMODE(shared.stat().st_mode) & 0o777 == 0o750
    listed = json.loads(cli("bank", "list", "--bank", shared, "--json").out)
    assert [row["id"] for row in listed] == [entry]
    done = cli("bank", "publish", entry[:8], "--to", home / "bank")
    assert done.code == 2 and "private" in done.err


def test_use_of_a_shared_entry_shows_with_it_though_it_is_noted_in_the_own_bank(
    cli: Cli, home: Path, tmp_path: Path
) -> None:
    entry, shared = add(cli, "--text", "sort"), tmp_path / "shared"
    assert cli("bank", "publish", entry, "--to", shared).code == 0
    (own,) = Bank.open(home / "bank").shelves()
    own.remove(entry)
    own.add_outcome({"entry": entry, "job": "job-7", "reached": True, "ita": 5})
    reach = ("--set", f'bank_dirs=["{shared}"]')
    (row,) = json.loads(cli(*reach, "bank", "list", "--json").out)
    assert (row["bank"], row["used"], row["reached"]) == (str(shared), 1, 1)
    assert "job-7" in cli(*reach, "bank", "show", entry[:8]).out
    assert [row["uses"] for row in json.loads(cli(*reach, "bank", "stats", "--json").out)] == [0, 1]


def test_check_fails_and_names_the_bad_entry(cli: Cli, home: Path) -> None:
    entry = add(cli, "--text", "sort")
    assert cli("bank", "check").code == 0
    path = next((home / "bank" / "models").glob(f"*/entries/{entry}/entry.json"))
    path.write_text(path.read_text().replace("sort", "steal"))
    done = cli("bank", "check")
    assert done.code == 2 and entry in done.out and "name" in done.out


def test_list_takes_descriptions_from_the_database_and_what_there_is_from_the_folder(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = add(cli, "--text", "sort", "--task", "sorting"), add(cli, "--text", "reverse")
    without = json.loads(cli("bank", "list", "--json").out)
    (Path.cwd() / "data.jsonl").write_text(LINE * 4)
    job = cli("submit", "--model", "small", "--train", "data.jsonl", "--eval", "data.jsonl", "--target", "loss<=1")
    assert job.code == 0, job.err
    assert cli("bank", "remove", gone).code == 0
    newer = add(cli, "--text", "not indexed yet")
    read, real = [], Shelf.read
    monkeypatch.setattr(Shelf, "read", lambda shelf, entry_id: read.append(entry_id) or real(shelf, entry_id))
    listed = {row["id"]: row for row in json.loads(cli("bank", "list", "--json").out)}
    assert read == [newer] and listed.keys() == {kept, newer}
    assert listed[kept] == next(row for row in without if row["id"] == kept)
    (home / "state.db").write_bytes(b"not a database" * 100)
    assert len(json.loads(cli("bank", "list", "--json").out)) == 2, "a broken database does not hide the bank"


def test_trials_are_shown(cli: Cli, home: Path) -> None:
    entry, other = add(cli, "--text", "sort"), add(cli, "--text", "reverse")
    (shelf,) = Bank.open(home / "bank").shelves()
    Trial(entry, "j1", 2, {other: [2.0]}, {other: 0.25, "vocab": 1.5}, complete=True).save(shelf)
    assert json.loads(cli("bank", "stats", "--json").out)[0]["tried"] == 1
    shown = cli("bank", "show", entry[:8]).out
    assert other[:12] in shown and "0.25" in shown and "vocab" in shown
    assert json.loads(cli("bank", "show", entry[:8], "--json").out)["trial"]["best"] == other


def test_text_that_is_no_text_is_refused(cli: Cli) -> None:
    for words in (("--text", "a\udcff"), ("--text", "a", "--task", "b\udcff")):
        done = cli("bank", "add", "--model", "small", *words)
        assert done.code == 2 and "UTF-8" in done.err
    assert json.loads(cli("bank", "list", "--json").out) == []


def test_control_characters_do_not_reach_the_terminal(cli: Cli) -> None:
    add(cli, "--text", "sort", "--task", "evil \x1b[2J task")
    assert "\x1b" not in cli("bank", "list").out and "evil" in cli("bank", "list").out


def test_neither_or_both_of_text_and_file_is_an_error(cli: Cli, tmp_path: Path) -> None:
    assert cli("bank", "add", "--model", "small").code == 2
    assert cli("bank", "add", "--model", "small", "--text", "a", "--file", tmp_path / "x.safetensors").code == 2
    done = cli("bank", "add", "--model", "small", "--file", tmp_path / "x.safetensors")
    assert done.code == 2 and "cannot be read" in done.err
