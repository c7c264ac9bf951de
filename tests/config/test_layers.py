"""Layers of settings: which wins, where a value came from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from prompttuner.config import Settings, layers, load_layers, load_settings
from prompttuner.config.mask import mask_text, mask_url
from prompttuner.config.reference import reference
from prompttuner.errors import ConfigError


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    (project / "deep").mkdir(parents=True)
    monkeypatch.setattr(layers, "SYSTEM_CONFIG", tmp_path / "system.toml")
    monkeypatch.setenv("PROMPTTUNER_HOME", str(home))
    monkeypatch.chdir(project / "deep")
    return {"system": tmp_path / "system.toml", "user": home / "config.toml", "project": project / "prompttuner.toml"}


def test_each_layer_wins_over_the_one_before(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_layers().origins["idle_limit_s"] == "default"
    for number, name in enumerate(["system", "user", "project"], start=1):
        places[name].write_text(f"idle_limit_s = {number}\n")
        loaded = load_layers()
        assert loaded.settings.idle_limit_s == number
        assert loaded.origins["idle_limit_s"] == str(places[name])
    monkeypatch.setenv("PROMPTTUNER_IDLE_LIMIT_S", "4m")
    assert load_settings().idle_limit_s == 240
    assert load_layers().origins["idle_limit_s"] == "environment PROMPTTUNER_IDLE_LIMIT_S"
    assert load_settings({"idle_limit_s": 5, "policy": None}).idle_limit_s == 5
    assert load_layers({"idle_limit_s": 5}).origins["idle_limit_s"] == "flag"


def test_groups_merge_key_by_key(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    places["system"].write_text('[slurm]\npartition = "gpu"\nsetup = ["module load cuda"]\n')
    places["user"].write_text('[slurm]\naccount = "lab"\n[slurm.extra]\nnice = "100"\n')
    monkeypatch.setenv("PROMPTTUNER_SLURM__QOS", "high")
    loaded = load_layers({"slurm": {"constraint": "a100"}, "local.slots": 3})
    slurm = loaded.settings.slurm
    assert (slurm.partition, slurm.account, slurm.qos, slurm.constraint) == ("gpu", "lab", "high", "a100")
    assert slurm.setup == ("module load cuda",)
    assert slurm.extra == {"nice": "100"}
    assert loaded.settings.local.slots == 3
    assert loaded.origins["slurm.partition"] == str(places["system"])
    assert loaded.origins["slurm.qos"] == "environment PROMPTTUNER_SLURM__QOS"


def test_a_table_in_pyproject_is_the_project_layer(places: dict[str, Path]) -> None:
    (places["project"].parent / "pyproject.toml").write_text('[tool.prompttuner]\nbackend = "slurm"\n')
    (places["project"].parent / "deep" / "pyproject.toml").write_text("[tool.other]\n")
    assert load_settings().backend == "slurm"


def test_a_path_in_a_file_is_relative_to_the_file_and_a_url_is_left_alone(places: dict[str, Path]) -> None:
    home, project = places["user"].parent, places["project"].parent
    places["user"].write_text('database = "saved.db"\nspool = "~/s"\n[slurm]\ntemplates = "mine"\n')
    places["project"].write_text('bank_dirs = ["banks", "/shared"]\nmetrics_file = "figures.prom"\n')
    settings = load_settings()
    assert (settings.database, settings.slurm.templates) == (str(home / "saved.db"), home / "mine")
    assert settings.spool == Path("~/s").expanduser()
    assert (settings.bank_dirs, settings.metrics_file) == (
        (project / "banks", Path("/shared")),
        project / "figures.prom",
    )
    for given, meant in [
        ("sqlite:///saved.db", f"sqlite:///{home}/saved.db"),
        ("sqlite:////saved.db", "sqlite:////saved.db"),
        ("postgresql://ada@h/n", "postgresql://ada@h/n"),
    ]:
        places["user"].write_text(f'database = "{given}"\n')
        assert load_settings().database == meant
    assert load_settings({"spool": "here"}).spool == Path("here").absolute()


def test_paths_follow_home(tmp_path: Path) -> None:
    settings = load_settings({"home": str(tmp_path / "h")})
    assert settings.database_url == f"sqlite:///{tmp_path}/h/state.db"
    assert settings.spool_dir == tmp_path / "h" / "spool"
    assert settings.all_bank_dirs == (tmp_path / "h" / "bank",)
    assert (settings.make_home().stat().st_mode & 0o777) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/home cannot be used: Not a directory; name another with --home"):
        settings.model_copy(update={"home": tmp_path / "file" / "home"}).make_home()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("idle_limit = 5", "unknown setting 'idle_limit'; did you mean 'idle_limit_s'"),
        ("[slurm]\nacount = 'x'", "did you mean 'slurm.account'"),
        ("idle_limit_s = 3600", "less than 3600"),
        ("idle_limit_s = 'soon'", "idle_limit_s"),
        ("backend = 'lsf'", "'local' or 'slurm'"),
        ("a = ", "broken TOML"),
        ("home = '/x'", "PROMPTTUNER_HOME"),
        ("suspect_s = 6", "three heartbeats"),
        ("[slurm]\naccount = 'a;b'", "characters that Slurm does not take"),
        ("[slurm]\naccount = ' lab'", "blanks at its ends"),
        ("[slurm]\nmem = '4 G'", "holds blanks"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_file(places: dict[str, Path], text: str, says: str) -> None:
    places["user"].write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_settings()
    assert str(places["user"]) in str(caught.value)


def test_a_wrong_environment_or_flag_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"flag: unknown setting 'polcy'; did you mean 'policy'"):
        load_settings({"polcy": "edf"})
    monkeypatch.setenv("PROMPTTUNER_LOCAL__SLOTS", "none")
    with pytest.raises(ConfigError, match="PROMPTTUNER_LOCAL__SLOTS"):
        load_settings()


def test_another_users_project_file_is_left_out_with_a_note(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    places["project"].write_text('command_hook = "rm"\n')
    monkeypatch.setattr(layers.os, "getuid", lambda: places["project"].stat().st_uid + 1)
    monkeypatch.setattr(layers, "ROOT_UID", -1)
    loaded = load_layers()
    assert loaded.settings.command_hook is None
    assert "another user" in loaded.notes[0]


def test_constructing_settings_reads_no_layer(places: dict[str, Path]) -> None:
    places["user"].write_text("tick_s = 7\n")
    assert Settings().tick_s == 1.0


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://me:p@s/s:w@db/x", "postgresql://me:***@db/x"),
        ("postgresql+psycopg://me:secret@db:5432/x", "postgresql+psycopg://me:***@db:5432/x"),
        ("postgresql://db/x?user=me&password=secret&a=b", "postgresql://db/x?user=me&password=***&a=b"),
        ("sqlite:////home/me/state.db", "sqlite:////home/me/state.db"),
    ],
)
def test_passwords_in_urls_are_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked


def test_webhooks_show_their_host_only() -> None:
    assert mask_url("https://hooks.example.org/services/T0/SECRET") == "https://hooks.example.org/***"


def test_every_setting_is_explained_and_the_reference_page_is_up_to_date() -> None:
    page = reference()
    assert "|  |" not in page
    written = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
    assert written.read_text() == page, "run: prompttuner config reference > docs/reference/settings.md"


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
@pytest.mark.parametrize("name", ["prompttuner.toml", "pyproject.toml"])
def test_a_project_file_that_others_may_write_is_refused_with_what_mends_it(
    tmp_path: Path, name: str, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path / "home"))
    file = tmp_path / name
    table = "" if name == "prompttuner.toml" else "[tool.prompttuner]\n"
    file.write_text(f'{table}command_hook = "touch {tmp_path}/run"\n')
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod go-w .*{name}"):
        load_layers(cwd=tmp_path)
    file.chmod(mode & ~0o022)
    assert load_layers(cwd=tmp_path).settings.command_hook is not None
