"""The shipped model: small, loadable with plain transformers, and as good as recorded."""

from __future__ import annotations

import json

import pytest

from prompttuner import smallmodel
from prompttuner.smallmodel import tasks


@pytest.fixture(scope="module")
def shipped():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(smallmodel.path()).eval(), AutoTokenizer.from_pretrained(
        smallmodel.path()
    )


def recorded() -> dict:
    return json.loads((smallmodel.path() / "quality.json").read_text())


def test_model_is_at_most_four_megabytes() -> None:
    assert sum(file.stat().st_size for file in smallmodel.path().iterdir()) <= 4_000_000


def test_tokenizer_knows_every_word_of_every_instruction(shipped) -> None:
    _, tokenizer = shipped
    everything = [text for task in [*tasks.SEEN.values(), *tasks.HELD_OUT.values()] for text in tasks.phrasings(task)]
    ids = tokenizer([*everything, "a B z Z ="])["input_ids"]
    assert tokenizer.unk_token_id not in {token for row in ids for token in row}


def test_recorded_quality_holds(shipped) -> None:
    from prompttuner.smallmodel.quality import measure

    record = recorded()
    names = ["reverse+same", "double+next", "drop_first+upper", "rotate_right+same", "reverse+next2", "drop_last+upper"]
    found = measure(*shipped, samples=record["samples"], tasks=names)
    for group in ("seen", "held_out"):
        for name, share in found[group].items():
            assert share == pytest.approx(record[group][name], abs=1.5 / record["samples"]), (
                name
            )  # rounding of other CPUs


def test_recorded_quality_is_worth_shipping() -> None:
    record = recorded()
    assert set(record["seen"]) == set(tasks.SEEN)
    assert record["seen_mean"] >= 0.98
    shares = record["held_out"].values()
    assert sum(share >= 0.9 for share in shares) >= 8  # what was learned carries over to new compositions ...
    assert sum(share <= 0.6 for share in shares) >= 3  # ... but not to all of them: there is something to tune
