"""One stored prompt: what it holds, how it is named by its content, and what makes one unacceptable."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from prompttuner.bank.folder.layout import ENTRY_FILES, ID_PATTERN
from prompttuner.bank.folder.reading import BadEntry, read_file

__all__ = ["BadEntry", "Entry", "check_prompt", "content_id", "encode", "read_entry", "read_prompt"]

Prompt = NDArray[np.float32]

MAX_TOKENS = 1024
"""Longest prompt, in virtual tokens."""
MAX_WIDTH = 1 << 16
MAX_TEXT = 16 << 10
MAX_JSON = 256 << 10
MAX_TENSOR_BYTES = MAX_TOKENS * (1 << 14) * 4
MAX_VALUE = 1e4
"""No embedding of a trained LLM is near this; larger values only serve to break a forward pass."""
_STRING_FIELDS = ("kind", "model", "task", "source", "owner", "licence", "created", "version")


@dataclass(frozen=True, slots=True)
class Entry:
    """A prompt's description. The tensor of a soft prompt is read separately (``read_prompt``)."""

    kind: str
    """``text`` or ``soft``."""
    model: str
    """The LLM's name as its user gave it."""
    text: str = ""
    shape: tuple[int, int] | None = None
    """(virtual tokens, embedding width) of a soft prompt."""
    task: str = ""
    source: str = ""
    owner: str = ""
    licence: str = ""
    version: str = ""
    """Which state of a tuned prompt this is: ``early`` (stopped early) or ``final``; empty for others."""
    quality: dict[str, Any] = field(default_factory=dict)
    """What is known of it: metric, target, iterations, start, loss."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    id: str = ""
    """Hash of the prompt itself (text, or tensor), not of its description."""


def content_id(entry: Entry, prompt: Prompt | None) -> str:
    """40 hex digits of SHA-256 over the prompt's content: the same prompt always has the same name."""
    if prompt is None:
        payload = b"text\0" + entry.text.encode()
    else:
        payload = f"soft\0{prompt.shape[0]}x{prompt.shape[1]}\0".encode() + prompt.astype("<f4").tobytes()
    return hashlib.sha256(payload).hexdigest()[:40]


def check_prompt(prompt: NDArray[Any], width: int | None = None) -> Prompt:
    """The array as float32 if it can be a soft prompt of an LLM of this embedding width.

    Raises:
        BadEntry: wrong shape or width, not finite, absurdly large.
    """
    if prompt.ndim != 2 or not (1 <= prompt.shape[0] <= MAX_TOKENS and 1 <= prompt.shape[1] <= MAX_WIDTH):
        raise BadEntry(f"shape {tuple(prompt.shape)}: a soft prompt is (1..{MAX_TOKENS} tokens, embedding width)")
    if width is not None and prompt.shape[1] != width:
        raise BadEntry(f"embedding width {prompt.shape[1]}, but this LLM has {width}")
    if not np.issubdtype(prompt.dtype, np.floating):
        raise BadEntry(f"numbers of type {prompt.dtype}: floating point is needed")
    with np.errstate(over="ignore"):
        prompt = np.ascontiguousarray(prompt, dtype=np.float32)
    if not np.isfinite(prompt).all():
        raise BadEntry("holds NaN or infinite values")
    if float(np.abs(prompt).max()) > MAX_VALUE:
        raise BadEntry(f"holds values above {MAX_VALUE:g}")
    return prompt


def check_text(text: str) -> str:
    """The text if it can be a prompt.

    Raises:
        BadEntry: empty, too long, or not Unicode.
    """
    if not text.strip():
        raise BadEntry("the text is empty")
    if len(_utf8("the text", text)) > MAX_TEXT:
        raise BadEntry(f"the text is longer than {MAX_TEXT} bytes")
    return text


def _utf8(what: str, text: str) -> bytes:
    """Raises BadEntry for half a surrogate pair, which JSON and command lines can bring and no file can hold."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadEntry(f"{what} holds bytes or code points that are no text in UTF-8") from None


def encode(entry: Entry, prompt: Prompt | None) -> dict[str, bytes]:
    """The files of an entry by name. ``entry.id`` must be set."""
    value: dict[str, Any] = {name: getattr(entry, name) for name in _STRING_FIELDS}
    for name, text in value.items():
        _utf8(name, text)
    value |= {"format": 1, "id": entry.id, "text": entry.text, "quality": entry.quality}
    value["shape"] = None if entry.shape is None else list(entry.shape)
    files = {"entry.json": (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()}
    if prompt is not None:
        files["prompt.safetensors"] = save_tensors({"prompt": prompt})
    if len(files["entry.json"]) > MAX_JSON:
        raise BadEntry(f"its description is larger than {MAX_JSON} bytes")
    return files


def read_entry(folder: Path) -> Entry:
    """Read and check an entry's description (for a text entry that is all there is).

    Raises:
        BadEntry: foreign files, links, wrong types, a name that does not fit the content.
    """
    _check_folder(folder)
    try:
        value = json.loads(read_file(folder / "entry.json", MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise BadEntry(f"entry.json is not JSON: {error}") from None
    entry = _from_json(value)
    if entry.id != folder.name:
        raise BadEntry(f"its description names it {entry.id[:12]}, its folder {folder.name[:12]}")
    if entry.kind == "text" and content_id(entry, None) != entry.id:
        raise BadEntry("the text does not fit its name: changed or damaged")
    return entry


def read_prompt(folder: Path, entry: Entry, width: int | None = None) -> Prompt:
    """The tensor (tokens, width) of a soft entry, checked against its name and the LLM's embedding width.

    Raises:
        BadEntry: damaged, hostile, or of another LLM.
    """
    _check_folder(folder)
    data = read_file(folder / "prompt.safetensors", MAX_TENSOR_BYTES + 4096)
    if len(data) < 8 or int.from_bytes(data[:8], "little") > 4096:
        raise BadEntry("prompt.safetensors has no sensible header")
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        names = {name: spec.get("dtype") for name, spec in header.items() if name != "__metadata__"}
        if names != {"prompt": "F32"}:
            raise BadEntry(f"prompt.safetensors holds {names}, expected one float32 tensor named prompt")
        prompt = load_tensors(data)["prompt"]
    except (SafetensorError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise BadEntry(f"prompt.safetensors is damaged: {error}") from None
    prompt = check_prompt(prompt, width)
    if prompt.shape != entry.shape:
        raise BadEntry(f"shape {prompt.shape}, but its description says {entry.shape}")
    if content_id(entry, prompt) != entry.id:
        raise BadEntry("the tensor does not fit its name: changed or damaged")
    return prompt


def _from_json(value: Any) -> Entry:
    if not isinstance(value, dict) or value.get("format") != 1:
        raise BadEntry("entry.json has an unknown format")
    strings = {name: value.get(name, "") for name in (*_STRING_FIELDS, "id", "text")}
    bad = [name for name, text in strings.items() if not isinstance(text, str)]
    if bad:
        raise BadEntry(f"entry.json: {', '.join(bad)} must be text")
    for name, text in strings.items():
        _utf8(f"entry.json: {name}", text)
    if not ID_PATTERN.fullmatch(strings["id"]):
        raise BadEntry("entry.json: id is not 40 hex digits")
    if strings["kind"] not in {"text", "soft"}:
        raise BadEntry(f"entry.json: kind is {strings['kind'][:20]!r}, not text or soft")
    shape = value.get("shape")
    if strings["kind"] == "text":
        check_text(strings["text"])
        shape = None
    elif not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)):
        raise BadEntry("entry.json: a soft prompt needs its shape [tokens, width]")
    quality = value.get("quality", {})
    if not isinstance(quality, dict):
        raise BadEntry("entry.json: quality must be an object")
    return Entry(**strings, shape=None if shape is None else (shape[0], shape[1]), quality=quality)


def _check_folder(folder: Path) -> None:
    try:
        info = folder.lstat()
    except OSError as error:
        raise BadEntry(f"cannot be read: {error.strerror}") from None
    if not stat.S_ISDIR(info.st_mode):
        raise BadEntry("is not a folder of its own (a link or a file)")
    try:
        foreign = sorted({item.name for item in os.scandir(folder)} - ENTRY_FILES)
    except OSError as error:
        raise BadEntry(f"cannot be read: {error.strerror}") from None
    if foreign:
        raise BadEntry(f"holds foreign files: {', '.join(repr(name[:60]) for name in foreign[:3])}")
