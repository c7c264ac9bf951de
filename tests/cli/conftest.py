"""A home of its own, a resource manager that only takes notes, and the command line in this very process."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import Cli, QuietBackend, Result

from prompttuner.cli.frame import root as frame
from prompttuner.config import layers

LINE = '{"input": "a b", "target": "b a"}\n'


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> QuietBackend:
    quiet = QuietBackend()
    monkeypatch.setattr("prompttuner.controller.opening.make_backend", lambda *_: quiet)
    return quiet


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: QuietBackend) -> Path:
    monkeypatch.setattr(layers, "SYSTEM_CONFIG", tmp_path / "no-system.toml")
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PROMPTTUNER_DEBUG", raising=False)
    monkeypatch.setattr("prompttuner.client.reading.READ_RETRY_S", 0.1)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.fixture
def cli(home: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*args: object) -> Result:
        capsys.readouterr()
        code = frame.run([str(arg) for arg in args])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def spec(home: Path) -> Path:
    """A spec file in the working folder, with its data."""
    for name in ("train", "eval"):
        Path(f"{name}.jsonl").write_text(LINE * 3)
    path = Path("job.toml").absolute()
    path.write_text('model = "small"\ntrain = "train.jsonl"\neval = "eval.jsonl"\ntarget = "loss<=0.5"\n')
    return path


@pytest.fixture
def held(cli: Cli, spec: Path) -> str:
    """The id of a job that is held, so that nothing happens to it."""
    done = cli("submit", spec, "--hold", "--name", "held-one", "-q")
    assert done.code == 0, done.err
    return done.out.strip()
