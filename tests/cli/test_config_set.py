"""``config set`` and ``unset`` change one value; everything else in the file stays, and nothing wrong is written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from cli_calls import Cli

WRITTEN = """# mine
idle_limit_s = "5m"  # short

[slurm]
# ours
partition = "gpu"
"""


@pytest.fixture
def config(home: Path) -> Path:
    home.mkdir(mode=0o700)
    path = home / "config.toml"
    path.write_text(WRITTEN)
    path.chmod(0o600)
    return path


def test_a_setting_is_written_where_its_table_is_and_comments_stay(cli: Cli, config: Path) -> None:
    done = cli("config", "set", "slurm.account", "lab1")
    assert done.code == 0, done.err
    text = config.read_text()
    assert text.startswith(WRITTEN.rstrip())
    assert tomllib.loads(text)["slurm"] == {"partition": "gpu", "account": "lab1"}
    assert config.stat().st_mode & 0o777 == 0o600
    assert cli("config", "show", "slurm.account", "--json").json["slurm.account"]["value"] == "lab1"


def test_numbers_and_lists_are_toml(cli: Cli, home: Path) -> None:
    assert cli("config", "set", "local.slots", "3").code == 0
    assert cli("config", "set", "slurm.setup", '["module load cuda"]').code == 0
    written = tomllib.loads((home / "config.toml").read_text())
    assert written == {"local": {"slots": 3}, "slurm": {"setup": ["module load cuda"]}}


def test_unset_takes_one_value_out(cli: Cli, config: Path) -> None:
    assert cli("config", "unset", "idle_limit_s").code == 0
    assert tomllib.loads(config.read_text()) == {"slurm": {"partition": "gpu"}}
    again = cli("config", "unset", "idle_limit_s")
    assert again.code == 3
    assert "does not set idle_limit_s" in again.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("local.slots", "none"), "local.slots"),
        (("local.slot", "2"), "did you mean 'local.slots'?"),
        (("home", "/elsewhere"), "PROMPTTUNER_HOME"),
        (("idle_limit_s", "soon"), "idle_limit_s"),
    ],
)
def test_what_would_not_load_is_refused_and_the_file_stays(
    cli: Cli, config: Path, args: tuple[str, str], says: str
) -> None:
    done = cli("config", "set", *args)
    assert done.code == 2
    assert says in done.err
    assert config.read_text() == WRITTEN


def test_a_broken_file_is_left_as_it_is(cli: Cli, config: Path) -> None:
    config.write_text("idle_limit_s = \n")
    done = cli("config", "set", "local.slots", "3")
    assert done.code == 2
    assert config.read_text() == "idle_limit_s = \n"


def test_a_project_has_a_file_of_its_own(cli: Cli, home: Path) -> None:
    assert cli("config", "set", "keep_days", "9", "--project").code == 0
    assert Path("prompttuner.toml").read_text() == "keep_days = 9\n"
    overruled = cli("config", "set", "keep_days", "5")
    assert "prompttuner.toml, which goes before" in overruled.out
    assert cli("config", "show", "keep_days", "--json").json["keep_days"]["value"] == 9


def test_accounts_and_partitions_may_have_blanks_and_reach_sbatch_quoted(cli: Cli, home: Path) -> None:
    assert cli("config", "set", "slurm.account", "my lab").code == 0
    assert cli("config", "set", "slurm.partition", "gpu long").code == 0
    script = cli("--backend", "slurm", "render", "agent").out
    assert "#SBATCH --account='my lab'\n" in script
    assert "#SBATCH --partition='gpu long'\n" in script
