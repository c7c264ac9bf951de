"""Loading models: frozen, and a clear message for each way in which it cannot work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from prompttuner import smallmodel
from prompttuner.engine.llm.model import GIB, LoadedModel, check_fits, choose_dtype, load_model, weight_elements
from prompttuner.errors import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(smallmodel.path(), tmp_path / "model"))


def test_loaded_model_is_frozen(small: LoadedModel) -> None:
    assert not small.model.training
    assert not any(parameter.requires_grad for parameter in small.model.parameters())
    assert small.dtype == torch.float32
    assert small.max_positions == 256
    assert small.bytes == 4 * weight_elements(smallmodel.path())


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist on this host"):
        load_model(tmp_path / "none")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load_model(folder)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(folder)


def test_cut_off_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


def test_remote_code_runs_only_if_allowed_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder.parent / "modules"))
    marker = folder.parent / "ran"
    (folder / "code.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OddConfig(LlamaConfig):\n    model_type = 'odd'\n"
        "class OddModel(LlamaForCausalLM):\n    config_class = OddConfig\n"
    )
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {
        "model_type": "odd",
        "auto_map": {"AutoConfig": "code.OddConfig", "AutoModelForCausalLM": "code.OddModel"},
    }
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="trust_remote_code = "):
        load_model(folder, trust_remote_code=["another/model"])
    assert not marker.exists()
    assert load_model(folder, trust_remote_code=["odd"], name="odd").model.__class__.__name__ == "OddModel"
    assert marker.exists()


def test_too_large_for_the_gpu_says_the_numbers() -> None:
    with pytest.raises(ModelError, match=r"13\.4 GiB in float32 .* 10\.0 of 15\.0 GiB are free.*bfloat16"):
        check_fits("big", int(13.4 * GIB), "float32", gpu="Tesla T4", free=10 * GIB, total=15 * GIB)
    check_fits("big", int(13.4 * GIB), "float32", gpu="A100", free=70 * GIB, total=80 * GIB)


def test_dtype_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(ModelError, match="int3"):
        choose_dtype("int3", cpu)


def test_auto_type_is_decided_anew_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(smallmodel.path())
    monkeypatch.setattr("prompttuner.engine.llm.model.choose_dtype", lambda asked, device: torch.bfloat16)
    loaded.to("cpu")
    assert loaded.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in loaded.model.buffers()} == {torch.float32}


@pytest.mark.gpu
def test_gpu_moves_and_computes(small: LoadedModel) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    loaded = load_model(smallmodel.path(), device="cuda")
    assert loaded.dtype == choose_dtype("auto", torch.device("cuda"))
    assert next(loaded.model.parameters()).is_cuda
