"""``prompttuner config``: the settings in force, and who said what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.completion import setting_words
from prompttuner.cli.frame.output import JsonFlag, print_json, print_table
from prompttuner.errors import ConfigError, NotFound

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Show the settings and where each comes from.")

SettingWord = Annotated[
    str, typer.Argument(metavar="KEY", help="A setting, such as slurm.partition.", autocompletion=setting_words)
]
ProjectFlag = Annotated[bool, typer.Option("--project", help="Of this folder's project, not your own.")]


@app.callback()
def group() -> None:
    """Show the settings and where each comes from."""


@app.command()
def show(
    keys: Annotated[
        list[str] | None,
        typer.Argument(help="Only these settings, or groups such as slurm.", autocompletion=setting_words),
    ] = None,
    changed: Annotated[bool, typer.Option(help="Only those that are not the default.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show the settings in force with their origin; secrets are masked."""
    from prompttuner.config.layers import flat_settings
    from prompttuner.spec.job import nearest_key

    loaded = context.layers()
    values = {name: _printable(name, value) for name, value in flat_settings(loaded.settings)}
    values["database"] = values["database"] or _printable("database", loaded.settings.database_url)
    values["spool"] = values["spool"] or str(loaded.settings.spool_dir)
    for key in keys or []:
        if not any(name == key or name.startswith(f"{key}.") for name in values):
            near = nearest_key(key, list(values))
            raise NotFound(f"there is no setting {key!r}" + (f"; did you mean {near!r}?" if near else ""))
    names = [
        name
        for name in values
        if (not keys or any(name == key or name.startswith(f"{key}.") for key in keys))
        and (not changed or loaded.origins[name] != "default")
    ]
    if json:
        print_json({name: {"value": values[name], "origin": loaded.origins[name]} for name in names})
        return
    print_table(["setting", "value", "origin"], [[name, _text(values[name]), loaded.origins[name]] for name in names])


@app.command("set")
def set_(
    key: SettingWord,
    value: Annotated[str, typer.Argument(help="TOML value, or plain text such as 10m.")],
    project: ProjectFlag = False,
) -> None:
    """Write a setting to your own config.toml (or to the project's file) once it has been checked."""
    from prompttuner.config.editing import set_in_file

    if key == "home" and not project:
        raise ConfigError("'home' cannot be set in the file that lies in it; set PROMPTTUNER_HOME instead")
    path = _file(project)
    set_in_file(path, key, context.as_value(value))
    typer.echo(f"{key} is set in {path}")
    _tell_if_overruled(key, path)


@app.command()
def unset(key: SettingWord, project: ProjectFlag = False) -> None:
    """Take a setting out of your own config.toml (or out of the project's file)."""
    from prompttuner.config.editing import unset_in_file

    path = _file(project)
    unset_in_file(path, key)
    typer.echo(f"{key} is no longer set in {path}")
    _tell_if_overruled(key, path)


def _file(project: bool) -> Path:
    """The file that is written: the user's own, or the nearest project's."""
    from prompttuner.config import load_layers
    from prompttuner.config.layers import find_project_config

    if project:
        return find_project_config(Path.cwd()) or Path.cwd() / "prompttuner.toml"
    return load_layers({"home": context.flag("home")}, Path("/")).settings.make_home() / "config.toml"


def _tell_if_overruled(key: str, path: Path) -> None:
    """A layer above may set the same: then what was written changes nothing here."""
    from prompttuner.config import load_layers

    origin = load_layers().origins[key]
    if origin not in {str(path), "default"}:
        typer.echo(f"note: here it comes from {origin}, which goes before")


@app.command()
def reference() -> None:
    """Print the table of all settings, with defaults and meaning (Markdown)."""
    from prompttuner.config.reference import reference as page

    typer.echo(page(), nl=False)


def _printable(name: str, value: Any) -> Any:
    from prompttuner.config.mask import mask_text, mask_url

    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_printable(name, one) for one in value]
    if isinstance(value, str):
        return mask_url(value) if name == "webhook" else mask_text(value)
    return value


def _text(value: Any) -> str:
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, list):
        return ", ".join(str(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
