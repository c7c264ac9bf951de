"""A lookup's report in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from prompttuner.bank import Bank
from prompttuner.bank.lookup.explain import CANDIDATE_COLUMNS, candidate_rows, lookup_lines
from prompttuner.controller.upkeep.harvest import BankView, enter_result
from prompttuner.protocol.lookup import LookupReport, RaceRound
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.protocol.target import Target

REPORT = LookupReport.expect({
    "strategy": "racing", "budget_s": 10.0, "evaluations": 500, "brute_force_evaluations": 5000, "entries": 300,
    "clusters": 17, "shortened": True, "seconds": 4.2, "source": "bank:abc", "why": "lowest loss",
    "notes": ["entry def refused: NaN"], "expected": {"factor": 0.4, "origin": "measured"},
    "candidates": [
        {"name": "ab" * 20, "score": 7.5, "after_steps": 0.5, "kind": "soft", "version": "final", "task": "t",
         "source": "s"},
        {"name": "vocab", "score": None},
    ],
})  # fmt: skip


def test_a_lookup_tells_choice_cost_saving_and_what_was_refused() -> None:
    text = "\n".join(lookup_lines(REPORT))
    for part in (
        "bank:abc",
        "lowest loss",
        "500 evaluations (10% of scoring all)",
        "cut short",
        "0.4 times",
        "refused: NaN",
    ):
        assert part in text


def test_it_says_who_raced_or_why_nobody_did() -> None:
    rounds = (RaceRound(8, 2), RaceRound(4, 2))
    assert "8 for 2 steps then 4 for 2 steps" in "\n".join(lookup_lines(replace(REPORT, race=rounds)))
    assert "left out: no time" in "\n".join(lookup_lines(replace(REPORT, race="left out: no time for it")))
    assert "Race" not in "\n".join(lookup_lines(REPORT))


def test_candidates_are_rows_of_the_table() -> None:
    rows = candidate_rows(REPORT)
    assert rows[0] == ["abababababab", "final soft", "t", "7.5", "0.5", "", "s"] and rows[1][0] == "vocab"
    assert all(len(row) == len(CANDIDATE_COLUMNS) for row in rows)


def test_a_candidate_shows_how_jobs_fared_that_started_from_it() -> None:
    place = CANDIDATE_COLUMNS.index("jobs before")
    fared = {"ab" * 20: [["j1", True, 10], ["j2", False, None], ["j3", True, 15]], "cd" * 20: [["j1", True, 1]]}
    assert [row[place] for row in candidate_rows(REPORT, fared)][:2] == ["2 of 3 reached, median 12.5", ""]
    assert candidate_rows(REPORT, {"ab" * 20: [["j2", False, None]]})[0][place] == "0 of 1 reached"


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({}, "not looked up"),
        ({"budget_s": 0.0}, "not have paid"),
        ({"budget_s": 5.0}, "5 s granted"),
        ({"why": "x"}, "x"),
    ],
)
def test_half_a_report_is_explained_too(report: dict[str, Any], expected: str) -> None:
    read = LookupReport.expect(report)
    assert expected in "\n".join(lookup_lines(read)) and candidate_rows(read) == []


SPEC = ResolvedSpec(
    model="org/tiny", name="sorting", target=Target("loss", "<=", 0.5), max_iterations=10, batch_size=8
)  # fmt: skip


def job_folder(folder: Path, prompt: np.ndarray) -> Path:
    (folder / "result").mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(SPEC.to_json()))
    (folder / "result" / "result.json").write_text(json.dumps({"outcome": "reached", "ita": 7}))
    (folder / "result" / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING"}))
    save_file({"prompt_embeddings": prompt}, folder / "result" / "adapter_model.safetensors")
    return folder


def test_the_controller_enters_results_once_and_never_fails_for_a_bad_one(tmp_path: Path) -> None:
    good = job_folder(tmp_path / "good", np.ones((2, 8), np.float32))
    lookup = LookupReport(chosen="ab" * 20, score=1.0)
    for _ in range(2):
        assert enter_result(tmp_path / "bank", good, "job-1", lookup) == ""
    shelf = Bank.open(tmp_path / "bank").shelf("org/tiny")
    assert [shelf.read(i).task for i in shelf.ids()] == ["sorting"]
    assert len(shelf.outcomes()["ab" * 20]) == 1
    assert BankView((tmp_path / "bank",)).holds("org/tiny") and not BankView((tmp_path / "bank",)).holds("org/other")
    bad = job_folder(tmp_path / "bad", np.full((2, 8), np.nan, np.float32))
    assert "NaN" in enter_result(tmp_path / "bank", bad, "job-2", LookupReport())
    assert enter_result(tmp_path / "bank", tmp_path / "none", "job-3", LookupReport()) == ""
