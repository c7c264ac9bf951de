"""A GGUF file as a model folder that transformers loads: dequantised, in float32."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from prompttuner.errors import ModelError
from prompttuner.files import make_private_dir, write_json
from prompttuner.realmodel.wheel import check_space

__all__ = ["NOTE", "convert", "gguf_architecture"]

NOTE = "origin.json"
"""Written last into a model folder: what it was made from. A folder without it is not complete."""
MAGIC = b"GGUF"
GROWTH = 8
"""Float32 takes so many times the room of 4 bits."""


def gguf_architecture(file: Path) -> str:
    """What kind of model a GGUF file holds, such as ``llama``.

    Raises:
        ModelError: no GGUF file, or the package to read it is missing.
    """
    try:
        with file.open("rb") as handle:
            magic = handle.read(4)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from None
    if magic != MAGIC:
        raise ModelError(f"{file} is no GGUF file (it does not begin with the letters GGUF)")
    with _needed():
        from gguf import GGUFReader
    try:
        field = GGUFReader(file).get_field("general.architecture")
        return str(field.contents()) if field is not None else ""
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ModelError(f"{file} is damaged: {error}") from None


def convert(file: Path, folder: Path, note: dict[str, Any], *, quiet: bool) -> Path:
    """Make the model folder ``folder`` from a GGUF file; a failure leaves nothing behind.

    Args:
        file: the GGUF file, with its tokenizer inside.
        folder: what to make; an existing one is left as it is if it is complete, else made again.
        note: what to note of its origin.
        quiet: no progress bar.

    Raises:
        ModelError: another architecture than transformers can read, a damaged file, no room.
    """
    if (folder / NOTE).is_file():
        return folder
    architecture = gguf_architecture(file)
    with _needed():
        import accelerate as _needed_by_transformers  # noqa: F401
        from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise ModelError(
            f"{file} holds a model of the architecture {architecture!r}, which transformers cannot read from GGUF "
            f"(it reads: {', '.join(sorted(GGUF_SUPPORTED_ARCHITECTURES))})"
        )
    make_private_dir(folder.parent)
    check_space(folder.parent, GROWTH * file.stat().st_size)
    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # of a conversion that was killed
    try:
        make_private_dir(scratch)
        _write(file, scratch, quiet)
        write_json(scratch / NOTE, {**note, "architecture": architecture, "dtype": "float32"})
        if folder.is_dir():
            shutil.rmtree(folder)  # incomplete: it has no note
        scratch.replace(folder)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ModelError(f"the disk of {folder.parent} is full: {os.strerror(error.errno)}; make room") from None
        raise ModelError(f"{file} cannot be converted: {' '.join(str(error).split())[:300]}") from error
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{file} cannot be converted: {' '.join(str(error).split())[:300]}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _write(file: Path, folder: Path, quiet: bool) -> None:
    """Write weights, configuration and tokenizer.

    A model that was loaded from GGUF refuses to be saved: one that was made from its configuration alone takes over its
    weights.
    """
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    (logging.disable_progress_bar if quiet else logging.enable_progress_bar)()
    try:
        with redirect_stderr(StringIO()) if quiet else nullcontext():  # one bar obeys no setting
            _write_parts(file, folder)
    finally:
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    for path in folder.iterdir():
        path.chmod(0o600)


def _write_parts(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config
    with torch.device("meta"):
        plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _needed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ModelError(
            f"a GGUF file cannot be read: {error}. Run: pip install 'prompttuner[realmodel]'; a model that was "
            "converted once needs it no more"
        ) from None
