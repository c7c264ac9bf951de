"""The table of all settings, made from their definitions, so that documentation cannot differ from them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from prompttuner.config.settings import ElasticOptions, LocalSettings, Settings, SlurmSettings
from prompttuner.spec.when import format_duration

__all__ = ["reference"]

INTRODUCTION = """# Settings

Made by `prompttuner config reference`. How the layers work: [command line](command-line.md#settings). Durations are
seconds, or text such as `10m`.
"""


def reference() -> str:
    """All settings as a Markdown page."""
    parts = [
        INTRODUCTION,
        _table(Settings, ""),
        "## Local allocations\n",
        _table(LocalSettings, "local."),
        "## Slurm\n",
        _table(SlurmSettings, "slurm."),
        "## Members of a running job\n",
        _table(ElasticOptions, "elastic."),
    ]
    return "\n".join(parts)


def _table(model: type[BaseModel], prefix: str) -> str:
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, info in model.model_fields.items():
        if not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)):
            lines.append(f"| `{prefix}{name}` | {_default(name, info)} | {info.description or ''} |")
    return "\n".join(lines) + "\n"


def _default(name: str, info: FieldInfo) -> str:
    value: Any = info.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format_duration(value) if name.endswith("_s") and value >= 1 else f"{value:g}"
    return str(value)
