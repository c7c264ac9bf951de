"""``initial_prompt = "bank:ENTRY"``, from the words to the first prompt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prompttuner import smallmodel
from prompttuner.bank import Bank, Entry
from prompttuner.bank.folder.named import named_entry, resolve_entry
from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.errors import DataError, NotFound, SpecError
from prompttuner.protocol.jobs import Membership
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.smallmodel import tasks
from prompttuner.spec import JobSpec
from prompttuner.worker.member_files import MemberFiles
from prompttuner.worker.tuner_task import TunerTask

MODEL = str(smallmodel.path())


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(MODEL)


def spec(folder: Path, start: str) -> ResolvedSpec:
    train, evaluation = tasks.write_dataset("reverse+upper", folder / "data", train=16, evaluation=8)
    values = {
        "model": MODEL, "template": "{input} {target}", "learning_rate": 0.03, "batch_size": 8, "seed": 0,
        "prompt_length": None, "initial_prompt": start, "note": "", "train": str(train), "eval": str(evaluation),
        "eval_samples": None, "max_iterations": 4, "target": {"metric": "loss", "op": "<=", "value": 0.1},
        "eval_every": 1, "bucketing": False,
    }  # fmt: skip
    return ResolvedSpec.expect(values)


def begin(loaded: LoadedModel, folder: Path, start: str, lookup_s: float = 0.0) -> TunerTask:
    files = MemberFiles(folder / "job", 1, "a")
    try:
        plan = Membership(1, ("a",), lookup_s=lookup_s)
        return TunerTask.begin(spec(folder, start), loaded, plan, files, [str(folder / "bank")])
    finally:
        files.close()


def test_a_job_starts_from_the_entry_that_its_user_names(tmp_path: Path, loaded: LoadedModel) -> None:
    shelf = Bank.create(tmp_path / "bank").shelf(MODEL)
    prompt = np.random.default_rng(0).standard_normal((5, loaded.hidden)).astype(np.float32)
    soft = shelf.add(Entry("soft", "small"), prompt, tuned_here=True)
    text = shelf.add(Entry("text", "small", text="reverse the letters :"))
    task = begin(loaded, tmp_path, f"bank:{soft}")
    assert torch.equal(task.tuner.prompt, torch.from_numpy(prompt))
    assert task.tuner.initial.origin == f"bank:{soft[:12]}"
    assert len(begin(loaded, tmp_path, f"bank:{text}").tuner.prompt) == 4
    with pytest.raises(DataError, match="bank list"):
        begin(loaded, tmp_path, "bank:" + "0" * 40)


def test_bank_is_looked_up_whatever_the_plan_grants(tmp_path: Path, loaded: LoadedModel) -> None:
    shelf = Bank.create(tmp_path / "bank").shelf(MODEL)
    shelf.add(Entry("text", "small", text=tasks.phrasings(tasks.get("reverse+upper"))[0]))
    assert begin(loaded, tmp_path, "bank").tuner.initial.origin.startswith("bank:")
    assert json.loads((tmp_path / "job" / "g1" / "a" / "lookup.json").read_text())["evaluations"] > 0


def test_an_entry_is_known_by_its_beginning_and_a_doubtful_one_is_refused(tmp_path: Path) -> None:
    shelf = Bank.create(tmp_path / "bank").shelf(MODEL)
    ids = [shelf.add(Entry("text", "small", text=f"prompt {n}")) for n in range(40)]
    assert named_entry([tmp_path / "none", tmp_path / "bank"], MODEL, ids[7][:12])[1] == ids[7]
    resolved = resolve_entry(spec(tmp_path, f"bank:{ids[3][:16]}"), [tmp_path / "bank"])
    assert str(resolved.initial_prompt) == f"bank:{ids[3]}"
    with pytest.raises(NotFound, match="bank list"):
        named_entry([tmp_path / "bank"], MODEL, "f" * 40)
    with pytest.raises(SpecError, match="give more of it"):
        named_entry([tmp_path / "bank"], MODEL, "")


@pytest.mark.parametrize("word", ["bank:", "bank:xyz", "bank:12", "bank:12345 ", "banks"])
def test_words_that_name_no_entry_are_refused_at_submit(word: str) -> None:
    with pytest.raises(ValueError, match="initial_prompt"):
        JobSpec(model="small", train="t", eval="e", target="loss<=1", initial_prompt=word)
    assert JobSpec(model="small", train="t", eval="e", target="loss<=1", initial_prompt="bank:12ab")
