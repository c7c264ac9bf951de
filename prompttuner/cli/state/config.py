"""``prompttuner config``: the settings in force, and who said what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.output import JsonFlag, print_json, print_table
from prompttuner.errors import NotFound

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Show the settings and where each comes from.")


@app.callback()
def group() -> None:
    """Show the settings and where each comes from."""


@app.command()
def show(
    keys: Annotated[list[str] | None, typer.Argument(help="Only these settings, or groups such as slurm.")] = None,
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
