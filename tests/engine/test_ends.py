"""The end of text comes from tokenizer, generation config and config together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prompttuner import smallmodel
from prompttuner.engine.initial import initial_prompt
from prompttuner.engine.llm.ends import stated_end
from prompttuner.engine.llm.model import LoadedModel, load_model
from prompttuner.engine.tuner import Tuner, read_data


class Holder:
    """Something that may state an end."""

    def __init__(self, end: Any = None, **parts: Any) -> None:
        self.eos_token_id = end
        vars(self).update(parts)


@pytest.mark.parametrize(
    ("tokenizer", "generation", "config", "wanted"),
    [
        (3, 4, 5, 3),
        (None, 4, 5, 4),
        (None, [7, 8], 5, 7),
        (None, None, 5, 5),
        (None, [], (6,), 6),
        (None, None, None, None),
    ],
)
def test_the_tokenizer_s_end_comes_first(tokenizer: Any, generation: Any, config: Any, wanted: int | None) -> None:
    model = Holder(generation_config=Holder(generation), config=Holder(config))
    assert stated_end(Holder(tokenizer), model) == wanted


def test_a_folder_whose_tokenizer_names_no_end_learns_the_model_s(
    tmp_path: Path, small: LoadedModel, make_spec: Callable[..., dict[str, Any]]
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(smallmodel.path(), folder)
    path = folder / "tokenizer_config.json"
    stated = json.loads(path.read_text())
    assert stated.pop("eos_token")
    path.write_text(json.dumps(stated))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    bare = load_model(folder)
    end = small.tokenizer.eos_token_id
    spec = make_spec(target={"metric": "exact_match", "op": ">=", "value": 1.0})
    tuner = Tuner(bare, spec, read_data(spec), initial_prompt(spec, bare))
    assert bare.tokenizer.eos_token_id == end
    assert all(sample.target[-1] == end for sample in tuner._train)
    wanted = Tuner(small, spec, read_data(spec), initial_prompt(spec, small))
    assert tuner.evaluate().metric == wanted.evaluate().metric
    assert tuner._prefix.answers(tuner.prompt, tuner._eval, 8) == wanted._prefix.answers(wanted.prompt, wanted._eval, 8)
