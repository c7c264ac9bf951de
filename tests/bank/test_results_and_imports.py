"""Prompts come in from finished jobs, files and adapters; nothing needs torch, pickles never come in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from prompttuner.bank import BadEntry, Bank, Entry, Shelf, add_result
from prompttuner.bank.folder.adapters import read_adapter, read_single_tensor
from prompttuner.bank.folder.imports import read_prompts
from prompttuner.errors import DataError
from prompttuner.protocol.lookup import LookupReport

PROMPT = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


def adapter(folder: Path, prompt: np.ndarray = PROMPT, **config: object) -> Path:
    folder.mkdir(parents=True)
    save_file({"prompt_embeddings": prompt}, folder / "adapter_model.safetensors")
    about = {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "org/tiny", "num_transformer_submodules": 1}
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    return folder


def result(folder: Path, outcome: str = "reached") -> Path:
    adapter(folder)
    save_file({"prompt": PROMPT * 0.5}, folder / "early_prompt.safetensors")
    value = {"outcome": outcome, "ita": 40, "metric": 0.1, "loss": 0.1, "step": 40, "initial": {"origin": "vocab"}}
    (folder / "result.json").write_text(json.dumps(value))
    return folder


SPEC = {
    "model": "org/tiny",
    "model_name": "tiny",
    "name": "reverse it",
    "max_iterations": 100,
    "target": {"value": 0.1},
}


def test_a_finished_job_leaves_its_prompt(tmp_path: Path) -> None:
    entry_id = add_result(tmp_path / "bank", result(tmp_path / "r"), SPEC, "job-1")
    shelf = Bank.open(tmp_path / "bank").shelf("org/tiny")
    assert entry_id is not None
    entry = shelf.read(entry_id)
    assert (entry.task, entry.source, entry.model, entry.quality["ita"]) == ("reverse it", "job job-1", "tiny", 40)
    expected = PROMPT if entry.version == "final" else PROMPT * 0.5
    assert np.array_equal(shelf.prompt(entry), expected)


def test_entering_a_result_twice_changes_nothing(tmp_path: Path) -> None:
    folder = result(tmp_path / "r")
    assert add_result(tmp_path / "b", folder, SPEC, "1") == add_result(tmp_path / "b", folder, SPEC, "1")
    assert len(Bank.open(tmp_path / "b").shelf("org/tiny").ids()) == 1


@pytest.mark.parametrize(("outcome", "entries"), [("reached", 1), ("exhausted", 0)])
def test_the_entry_it_started_from_learns_how_it_went(tmp_path: Path, outcome: str, entries: int) -> None:
    chosen = "ab" * 20
    lookup = LookupReport(chosen=chosen, score=0.5, vocab_score=9.0)
    add_result(tmp_path / "b", result(tmp_path / "r", outcome), SPEC, "job-1", lookup=lookup)
    shelf = Bank.open(tmp_path / "b").shelf("org/tiny")
    (outcomes,) = shelf.outcomes()[chosen]
    assert (outcomes["job"], outcomes["reached"], outcomes["ita"], outcomes["score"]) == (
        "job-1", outcome == "reached", 40, 0.5
    )  # fmt: skip
    assert len(shelf.ids()) == entries


def test_a_diverged_result_is_refused(tmp_path: Path) -> None:
    folder = result(tmp_path / "r")
    save_file({"prompt_embeddings": PROMPT * np.nan}, folder / "adapter_model.safetensors")
    if (folder / "early_prompt.safetensors").exists():
        save_file({"prompt": PROMPT * np.nan}, folder / "early_prompt.safetensors")
    with pytest.raises(BadEntry, match="NaN"):
        add_result(tmp_path / "b", folder, SPEC, "1")


def test_a_bank_is_written_without_torch() -> None:
    modules = "prompttuner.bank, prompttuner.bank.folder.imports, prompttuner.bank.index.shelf_index"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_adapters_of_any_float_type_are_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        path = tmp_path / f"{dtype}.safetensors"
        save_torch({"prompt_embeddings": torch.from_numpy(PROMPT).to(dtype)}, path)
        expected = torch.from_numpy(PROMPT).to(dtype).float().numpy()
        assert np.array_equal(read_single_tensor(path), expected)


def test_pickles_and_other_adapters_are_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(BadEntry, match="pickle"):
        read_adapter(folder)
    with pytest.raises(BadEntry, match="LORA"):
        read_adapter(adapter(tmp_path / "lora", peft_type="LORA"))
    with pytest.raises(BadEntry, match="encoder-decoder"):
        read_adapter(adapter(tmp_path / "t5", num_transformer_submodules=2))
    with pytest.raises(BadEntry, match="no PEFT adapter"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\x00" * 30, (50).to_bytes(8, "little") + b"{}", b"PK\x03\x04" * 20])
def test_files_that_are_no_tensors_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadEntry):
        read_single_tensor(path)


def test_jsonl_names_bad_lines_and_takes_the_rest(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"text": "sort", "task": "a"}\n\n{"text": 3}\nnot json\n{"text": " "}\n{"text": "turn", "task": 1}\n'
    )
    items = list(read_prompts(path, Entry("text", "m", licence="CC0")))
    good = [item.entry for item in items if item.entry]
    assert [(e.text, e.task, e.licence, e.source) for e in good] == [("sort", "a", "CC0", "p.jsonl:1")]
    assert [item.where for item in items if not item.entry] == ["p.jsonl:3", "p.jsonl:4", "p.jsonl:5", "p.jsonl:6"]
    assert shelf.read(shelf.add(good[0])).text == "sort"


def test_plain_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("sort it\n\n  turn it \n")
    assert [i.entry.text for i in read_prompts(path, Entry("text", "m")) if i.entry] == ["sort it", "turn it"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="text"):
        list(read_prompts(path, Entry("text", "m")))
    with pytest.raises(DataError, match="no such"):
        list(read_prompts(tmp_path / "missing.txt", Entry("text", "m")))
