"""``prompttuner fetch``: models for nodes that have no internet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prompttuner.cli.frame.output import JsonFlag, print_json
from prompttuner.errors import ModelError

__all__ = ["app"]

app = typer.Typer()

PATTERNS = ["*.json", "*.safetensors", "tokenizer*", "*.model", "vocab*", "merges.txt", "*.jinja"]
"""What is needed to load a causal LM; weights in other formats are fetched only if there are no safetensors."""
PICKLES = ["pytorch_model*.bin"]


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="Hub id, such as facebook/opt-125m.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    to: Annotated[Path | None, typer.Option(help="Into this folder instead of the hub's cache.")] = None,
    json: JsonFlag = False,
) -> None:
    """Download a model ahead, for nodes without internet."""
    from prompttuner.spec.models import check_model_folder, locate_model

    located = locate_model(model, Path.cwd())
    if Path(located).is_absolute():
        folder = Path(located)
    else:
        folder = _download(located, revision, to, PATTERNS)
        if not any(folder.glob("*.safetensors")):
            folder = _download(located, revision, to, [*PATTERNS, *PICKLES])
    check_model_folder(folder, (model,), model)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if json:
        print_json({"model": model, "folder": str(folder), "bytes": size})
    else:
        typer.echo(f"{model}: {size / 1e6:.1f} MB in {folder}")
        typer.echo(f'Use it with: model = "{folder if to else model}"')


def _download(model: str, revision: str | None, to: Path | None, patterns: list[str]) -> Path:
    """Raises ModelError with the hub's own reason in one line."""
    import huggingface_hub

    options: dict[str, Any] = {"revision": revision, "allow_patterns": patterns}
    if to is not None:
        options["local_dir"] = str(to)
    try:
        return Path(huggingface_hub.snapshot_download(model, **options))
    except Exception as error:  # the hub's client raises classes of several libraries
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"{model} cannot be fetched: {reason}. Fetch it where there is internet (and HF_HUB_OFFLINE is not set), "
            "or copy its folder and give that as the model"
        ) from error
