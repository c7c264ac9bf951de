"""Examples in the documentation run as they stand. CONTRIBUTING.md explains how a block is marked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
TIMEOUT_S = 600
NEEDS = frozenset({"slurm", "postgres"})
"""What a page may ask for: a cluster (its commands then run with ``SLURM_CONF``), an empty database (``$DATABASE``)."""


@dataclass(frozen=True)
class Block:
    """One marked fenced block: ``console test [slurm] [postgres]``, ``python test`` or ``LANGUAGE file=NAME``."""

    kind: str
    body: str
    line: int
    file: str = ""
    needs: frozenset[str] = frozenset()


def blocks(text: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        language, *marks = match["info"].split()[:1] + match["info"].split()[1:] or [""]
        line = text[: match.start()].count("\n") + 1
        names = [mark.removeprefix("file=") for mark in marks if mark.startswith("file=")]
        if names:
            found.append(Block("file", match["body"], line, names[0]))
        elif "test" in marks:
            found.append(Block(language, match["body"], line, needs=NEEDS & set(marks)))
    return found


def pages() -> list[Path]:
    everything = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in everything if page.exists() and blocks(page.read_text())]


FIXTURES = {"slurm": "slurm", "postgres": "postgres_url"}


def needs(page: Path) -> list[str]:
    return sorted({need for block in blocks(page.read_text()) for need in block.needs})


def pages_with_examples() -> list[object]:
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[getattr(pytest.mark, need) for need in needs(page)])
        for page in pages()
    ]


def sessions(body: str) -> list[tuple[str, str]]:
    """(command, expected output) of a console block."""
    parts = re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]
    return [(command, expected) for command, _, expected in (part.partition("\n") for part in parts)]


def fits(expected: str, output: str) -> bool:
    """Whether the output is the expected one; ``...`` stands for anything, runs of blanks are alike, and where nothing
    is expected anything fits."""
    wanted = " ".join(expected.split())
    pattern = ".*".join(re.escape(part.strip()) for part in wanted.split("..."))
    return not wanted or re.fullmatch(pattern.replace(r"\ ", r"\s+"), " ".join(output.split()), re.DOTALL) is not None


@pytest.mark.parametrize(
    ("expected", "output", "good"),
    [
        ("", "anything", True),
        ("a b", "a   b\n", True),
        ("a ... d", "a b c d", True),
        ("...\nd", "a\nb\nd\n", True),
        ("a ...", "b c", False),
        ("a b", "a b c", False),
    ],
)
def test_the_comparison_itself(expected: str, output: str, good: bool) -> None:
    assert fits(expected, output) == good


def test_the_first_job_is_among_the_pages() -> None:
    assert ROOT / "docs" / "howto" / "first-job.md" in pages()


@pytest.mark.timeout(TIMEOUT_S + 300)
@pytest.mark.parametrize("page", pages_with_examples())
def test_examples_of_a_page_run_in_order(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    given = {need: request.getfixturevalue(FIXTURES[need]) for need in needs(page)}
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PROMPTTUNER_")},
        "PROMPTTUNER_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PROMPTTUNER_IDLE_LIMIT_S": "60",
        "OMP_NUM_THREADS": "1",
        **({"DATABASE": given["postgres"]} if "postgres" in given else {}),
    }
    work = tmp_path / "work"
    work.mkdir()
    try:
        for block in blocks(page.read_text()):
            where = f"{page.relative_to(ROOT)}, line {block.line}"
            if block.kind == "file":
                (work / block.file).write_text(block.body)
            elif block.kind == "python":
                run([sys.executable, "-c", block.body], work, env, where)
            else:
                assert block.kind == "console", f"{where}: only console and python blocks can be run"
                for command, expected in sessions(block.body):
                    output = run(["bash", "-euo", "pipefail", "-c", command], work, env, f"{where}: {command}")
                    assert fits(expected, output), f"{where}: {command}\nprinted:\n{output}\nexpected:\n{expected}"
    finally:
        end_agents(tmp_path / "home", work, env)


def run(command: list[str], work: Path, env: dict[str, str], where: str) -> str:
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{where}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def end_agents(home: Path, work: Path, env: dict[str, str]) -> None:
    """Agents that a page has started would stay warm for minutes."""
    if (home / "state.db").exists():
        run(["prompttuner", "run", "--until-done", "-q"], work, env, "ending the page's agents")


def test_every_page_is_found_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    listed = set(re.findall(r"\]\(([^)#\s]+\.md)", index))
    assert listed >= {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} - {"index.md"}


def test_links_between_pages_lead_somewhere() -> None:
    everything = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    broken = []
    for page in everything:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert sorted(broken) == []
