"""What `submit --dry-run` says, `submit` does, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_calls import Cli


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_dry_run_and_submit_refuse_alike_before_anything_is_left(
    dry: list[str], cli: Cli, spec: Path, home: Path
) -> None:
    many = cli("submit", spec, "--min-gpus", "9", "--max-gpus", "16", *dry)
    assert many.code == 2 and "more than the 2 that may be held here" in many.err
    long = cli("submit", spec, "--prompt-length", "300", *dry)
    assert long.code == 2 and "leaves no room in the model's 256 positions" in long.err
    assert not home.exists()


def test_a_home_that_cannot_be_written_is_noticed_by_a_dry_run(
    cli: Cli, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("plain-file").write_text("")
    monkeypatch.setenv("PROMPTTUNER_HOME", str(Path("plain-file/home").absolute()))
    done = cli("submit", spec, "--dry-run")
    assert done.code == 2 and "cannot be written" in done.err


def test_notes_say_what_is_possible(cli: Cli, spec: Path) -> None:
    done = cli("submit", spec, "--dry-run", "--deadline", "1s")
    assert done.code == 0
    assert "possible is 20" in done.err
    assert "batch_size 16 is above the 3 training samples" in done.err
    json.loads(cli("submit", spec, "--dry-run", "--json").out)
