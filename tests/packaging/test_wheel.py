"""The wheel alone gives a working command.

To keep this quick, the fresh environment takes the *dependencies* from the environment that runs the tests (by a .pth
file); prompttuner itself comes from the wheel only, which is checked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("bank", "db", "slurm", "sbatch_templates")
KINDS = {".py", ".json", ".jsonl", ".j2", ".mako", ".safetensors", ".toml"}
SOURCES = ("prompttuner", *LINKED, "pyproject.toml", "README.md", "LICENSE")


def run(command: Sequence[str | Path], cwd: Path, **env: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PROMPTTUNER_"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, links kept as links: building leaves traces, and these shall not be in the clone."""
    place = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, place / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, place / name)
    return place


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source], source)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it; its ``bin`` folder."""
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place, with_pip=False)
    bin_ = place / "bin"
    run([sys.executable, "-m", "pip", "--python", bin_ / "python", "install", "-q", "--no-deps", wheel], place)
    packages = next((place / "lib").glob("python*/site-packages"))
    dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return bin_


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_one_package_and_all_its_data(source: Path, wheel: Path) -> None:
    inside = names(wheel)
    assert {name.split("/")[0] for name in inside} == {"prompttuner"}
    folders = [source / "prompttuner", *((source / "prompttuner" / name) for name in LINKED)]
    expected = {
        f"{folder.relative_to(source)}/{path.relative_to(folder.resolve())}"
        for folder in folders
        for path in folder.resolve().rglob("*")
        if path.is_file() and path.suffix in KINDS
    }
    assert expected - inside == set()
    assert len(expected) > 100
    assert "prompttuner/py.typed" in inside
    assert "prompttuner/smallmodel/model/model.safetensors" in inside
    assert "prompttuner/sbatch_templates/agent.sh.j2" in inside
    assert "prompttuner/db/migrations/script.py.mako" in inside


def test_a_wheel_made_from_the_sdist_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source], source)
    assert names(next(tmp_path.glob("*.whl"))) == names(wheel)
    assert list(tmp_path.glob("*.tar.gz"))


def test_the_command_works_from_the_wheel_alone(fresh: Path, tmp_path: Path) -> None:
    command = fresh / "prompttuner"
    home = {"PROMPTTUNER_HOME": str(tmp_path / "home")}
    assert "submit" in run([command, "--help"], tmp_path, **home)
    shown = json.loads(run([command, "config", "show", "--json"], tmp_path, **home))
    assert shown["home"]["origin"] == "environment PROMPTTUNER_HOME"
    assert json.loads(run([command, "status", "--json"], tmp_path, **home))["jobs"] == []
    assert json.loads(run([command, "db", "upgrade", "--json"], tmp_path, **home))["before"] is None
    assert "all is well" in run([command, "db", "check"], tmp_path, **home)
    found = json.loads(run([command, "fetch", "small", "--json"], tmp_path, **home))
    assert Path(found["folder"]).is_relative_to(fresh.parent)


def test_all_of_prompttuner_comes_from_the_wheel(fresh: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, prompttuner, prompttuner.bank, prompttuner.db, prompttuner.slurm, json\n"
        "print(json.dumps([prompttuner.__file__, prompttuner.bank.__file__, prompttuner.db.__file__,"
        " [n for n in ('bank', 'db', 'slurm', 'sbatch_templates') if u.find_spec(n)]]))"
    )
    *files, top_level = json.loads(run([fresh / "python", "-c", code], tmp_path))
    assert all(Path(file).is_relative_to(fresh.parent) for file in files)
    assert top_level == []
