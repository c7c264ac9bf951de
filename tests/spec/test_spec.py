"""What a job spec accepts, refuses, and becomes when it is submitted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prompttuner.errors import DataError, ModelError, SpecError
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.protocol.target import Target
from prompttuner.spec import JobSpec, check_data, load_spec, make_spec, resolve
from prompttuner.spec.grid import expand_grid, parse_grid
from prompttuner.spec.models import check_at_hand
from prompttuner.spec.when import format_duration, parse_deadline, parse_duration

NOW = 1_800_000_000.0
LINE = '{"input": "a b", "target": "b a"}\n'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def values(tmp_path: Path, model: Path) -> dict[str, object]:
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text(LINE * 3)
    return {
        "model": str(model),
        "train": str(tmp_path / "train.jsonl"),
        "eval": str(tmp_path / "eval.jsonl"),
        "target": "loss<=0.5",
    }


def test_resolved_spec_is_plain_absolute_json_with_hashes_and_zoned_times(values: dict[str, object]) -> None:
    spec = resolve(make_spec({**values, "deadline": "1h30m"}), NOW)
    assert ResolvedSpec.read(json.loads(json.dumps(spec.to_json()))) == spec
    assert Path(spec.train).is_absolute()
    assert len(spec.train_sha256) == 64
    assert spec.train_count == spec.eval_count == 3
    assert spec.deadline_at == NOW + 5400
    assert spec.deadline_iso[-6] in "+-"
    assert spec.submitted_at == NOW
    assert spec.target == Target("loss", "<=", 0.5)
    assert spec.prompt_length is None  # auto: the found prompt brings its own
    assert resolve(make_spec({**values, "initial_prompt": "vocab"}), NOW).prompt_length == 20
    assert set(JobSpec.model_fields) <= set(ResolvedSpec.keys())


def test_without_a_deadline_a_job_is_best_effort(values: dict[str, object]) -> None:
    assert resolve(make_spec(values), NOW).deadline_at is None


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learning_rat", "learning_rate"),
        ("deadlin", "deadline"),
        ("max_gpu", "max_gpus"),
        ("Model", "model"),
        ("batchsize", "batch_size"),
        ("max-iterations", "max_iterations"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(values: dict[str, object], key: str, near: str) -> None:
    with pytest.raises(SpecError, match=f"unknown key '{key}'; did you mean '{near}'"):
        make_spec({**values, key: 1})


def test_aliases_mean_their_field_but_not_twice(values: dict[str, object]) -> None:
    assert make_spec({**values, "lr": 0.5}).learning_rate == 0.5
    with pytest.raises(SpecError, match="given twice"):
        make_spec({**values, "lr": 0.5, "learning_rate": 0.5})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loss", "not a metric"),
        ("loss>=0.1", "improves towards <="),
        ("exact_match<=0.1", "improves towards >="),
        ("bleu>=0.3", "unknown metric 'bleu'"),
        ("loss<=abc", "is not a number"),
        ("loss<=nan", "finite"),
        ("loss<=0", "above 0"),
        ("exact_match>=90", "did you mean exact_match>=0.9"),
        ("rougeL>=-1", "share"),
        ("", "not a metric"),
    ],
)
def test_a_nonsense_target_says_what_to_write(values: dict[str, object], text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        make_spec({**values, "target": text})


def test_a_target_knows_when_it_is_reached(values: dict[str, object]) -> None:
    loss = make_spec(values).target
    match = make_spec({**values, "target": " Exact_Match >= 0.9 "}).target
    assert loss.reached(0.5) and not loss.reached(0.51) and not loss.reached(float("nan"))
    assert match.reached(0.9) and not match.reached(0.89) and str(match) == "exact_match>=0.9"


@pytest.mark.parametrize(
    ("deadline", "says"),
    [
        ("soon", "cannot be read"),
        ("0m", "must lie ahead"),
        ("99999d", "must lie ahead"),
        ("2001-01-01T00:00Z", "in the past"),
        ("2030-01-01T00:00", "no time zone"),
        (30, "has no unit"),
    ],
)
def test_a_bad_deadline_says_what_to_write(values: dict[str, object], deadline: object, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        resolve(make_spec({**values, "deadline": deadline}), NOW)


def test_an_iso_deadline_keeps_its_zone() -> None:
    assert parse_deadline("2030-01-01T01:00+01:00", NOW) == parse_deadline("2030-01-01T00:00Z", NOW)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("1h30m", 5400), ("1h 30min", 5400), ("1.5h", 5400), ("2d", 172800), ("45s", 45), ("5", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@given(st.integers(1, 59), st.integers(0, 59))
@settings(deadline=None)
def test_a_short_duration_reads_back_what_was_formatted(minutes: int, seconds: int) -> None:
    assert parse_duration(format_duration(60 * minutes + seconds)) == 60 * minutes + seconds


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no samples"),
        (b"\n\n", "holds no samples"),
        (LINE.encode() + b'{"input": "a", \n', "line 2: broken JSON at column"),
        (LINE.encode() * 4 + b'{"input": "a"}\n', "line 5: has no 'target'"),
        (b'{"input": 3, "target": "x"}\n', "line 1: 'input' must be text, not int"),
        (b'{"input": "a", "target": ""}\n', "line 1: 'target' is empty"),
        (b'["a", "b"]\n', "line 1: must be an object"),
        (LINE.encode() + b'{"input": "\xff", "target": "x"}\n', "line 2: not UTF-8"),
        (b"[" * 100_000 + b"\n", "line 1: broken JSON"),
        (LINE.encode() + b'{"n": ' + b"9" * 5000 + b"}\n", "line 2: broken JSON: a number of too many digits"),
        (LINE.encode() + b'{"input": "a", "target": "\\ud800"}\n', "line 2: 'target' holds half of a surrogate pair"),
    ],
)
def test_broken_data_is_an_error_with_file_and_line(values: dict[str, object], content: bytes, says: str) -> None:
    path = Path(str(values["train"]))
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        resolve(make_spec(values), NOW)
    assert str(path) in str(caught.value)


def test_missing_data_and_folders_are_errors(values: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        resolve(make_spec({**values, "eval": str(tmp_path / "gone.jsonl")}), NOW)
    with pytest.raises(DataError, match="is a folder"):
        resolve(make_spec({**values, "eval": str(tmp_path)}), NOW)


def test_data_that_is_no_ordinary_file_is_an_error_at_once(values: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("loop", "cannot be read"), ("pipe", "no ordinary file"), ("x" * 300, "cannot be read")):
        with pytest.raises(DataError, match=says):
            resolve(make_spec({**values, "train": str(tmp_path / name)}), NOW)


def test_data_that_changes_after_submit_is_an_error(values: dict[str, object]) -> None:
    spec = resolve(make_spec(values), NOW)
    check_data(spec)
    path = Path(spec.eval)
    path.write_text(LINE * 4)
    with pytest.raises(DataError, match="has changed since submit"):
        check_data(spec)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read now"):
        check_data(spec)


@pytest.mark.parametrize(
    ("missing", "says"),
    [("config.json", "no config.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_an_incomplete_model_folder_is_an_error(
    values: dict[str, object], model: Path, missing: str, says: str
) -> None:
    (model / missing).unlink()
    with pytest.raises(ModelError, match=says):
        resolve(make_spec(values), NOW)


def test_missing_shards_are_named(values: dict[str, object], model: Path) -> None:
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    with pytest.raises(ModelError, match=r"model-2\.safetensors"):
        resolve(make_spec(values), NOW)


def test_remote_code_is_refused_unless_allowed_by_name(values: dict[str, object], model: Path) -> None:
    (model / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "evil.Model"}}')
    with pytest.raises(ModelError, match="trust_remote_code"):
        resolve(make_spec(values), NOW)
    assert resolve(make_spec({**values, "trust_remote_code": str(model)}), NOW).trust_remote_code == (str(model),)


def test_hub_ids_pass_and_paths_that_do_not_exist_fail(values: dict[str, object]) -> None:
    assert resolve(make_spec({**values, "model": "facebook/opt-125m"}), NOW).model == "facebook/opt-125m"
    for wrong in ("./nowhere", "/nowhere/x", "a/b/c", "bad name", "x" * 300):
        with pytest.raises(ModelError, match="no such folder"):
            resolve(make_spec({**values, "model": wrong}), NOW)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"template": "{input}"}, "must hold"),
        ({"template": "{target} {input}"}, "must hold"),
        ({"max_gpus": 32, "batch_size": 8}, "above batch_size"),
        ({"min_gpus": 3, "max_gpus": 2}, "above max_gpus"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"initial_prompt": "best"}, "none of auto"),
        ({"initial_prompt": "text: "}, "holds no text"),
        ({"on_miss": "explode"}, "on_miss"),
        ({"setup": ["a\nb"]}, "single line"),
        ({"name": "a\nb"}, "may hold"),
        ({"seed": -1}, "seed"),
        ({"template": "{input} {target}\ud800"}, "surrogate"),
        ({"setup": ["\ud800"]}, "surrogate"),
        ({"train": "a\0b"}, "NUL"),
        ({"eval": Path("\udcff.jsonl")}, "no UTF-8"),
        ({"model": "~no-such-user/model"}, "no such user"),
        ({"name": "x" * 5000}, r"at most 100 characters.*\(5002 characters\)"),
    ],
)
def test_values_that_cannot_be_right_are_refused(values: dict[str, object], extra: dict, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        make_spec({**values, **extra})


def test_default_max_gpus_follows_a_small_batch(values: dict[str, object]) -> None:
    assert make_spec({**values, "batch_size": 2}).max_gpus == 2
    assert make_spec(values).max_gpus == 4


def test_initial_prompt_file_must_be_safetensors_and_is_hashed(values: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    with pytest.raises(DataError, match="no such file"):
        resolve(make_spec({**values, "initial_prompt": str(path)}), NOW)
    path.write_bytes(b"garbage that is no header")
    with pytest.raises(DataError, match="not a safetensors file"):
        resolve(make_spec({**values, "initial_prompt": str(path)}), NOW)
    path.write_bytes((9).to_bytes(8, "little") + b"{}")  # cut off within its header
    with pytest.raises(DataError, match="not a safetensors file"):
        resolve(make_spec({**values, "initial_prompt": str(path)}), NOW)
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="holds no tensor"):
        resolve(make_spec({**values, "initial_prompt": str(path)}), NOW)
    path.write_bytes((12).to_bytes(8, "little") + b'{"prompt":0}')
    spec = resolve(make_spec({**values, "initial_prompt": str(path)}), NOW)
    assert spec.prompt_length is None
    assert len(spec.initial_prompt_sha256) == 64


def test_toml_and_json_files_mean_the_same_and_paths_are_beside_the_file(
    values: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = {"model": "model", "train": "train.jsonl", "eval": "eval.jsonl", "target": "loss<=0.5", "lr": 0.1}
    (tmp_path / "job.json").write_text(json.dumps(beside))
    (tmp_path / "job.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in beside.items()))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    toml, from_json = load_spec(tmp_path / "job.toml"), load_spec(tmp_path / "job.json")
    assert toml == from_json
    assert toml.model == values["model"]
    assert str(toml.train) == values["train"]
    assert load_spec(tmp_path / "job.toml", {"learning_rate": 0.2}).learning_rate == 0.2
    (tmp_path / "auto").mkdir()  # a folder of that name is not what `auto` means
    assert load_spec(tmp_path / "job.toml", {}).initial_prompt == "auto"
    (tmp_path / "job.toml").write_text((tmp_path / "job.toml").read_text() + 'initial_prompt = "auto"\n')
    assert load_spec(tmp_path / "job.toml", {}).initial_prompt == "auto"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("job.toml", "a = ", "broken TOML"),
        ("job.json", "{", "broken JSON"),
        ("job.json", "[]", "one object"),
        ("job.toml", "model = 'small'", "train: is required"),
        ("job.toml", "lr = 1\nlearning_rate = 2", "'learning_rate' is given twice"),
        ("job.json", '{"seed": ' + "9" * 5000 + "}", "cannot be read"),
        ("job.json", "[" * 100_000, "cannot be read"),
    ],
)
def test_a_broken_spec_file_is_an_error(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SpecError, match=says):
        load_spec(tmp_path / name)


def test_a_missing_spec_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        load_spec(tmp_path / "gone.toml")


def test_a_grid_makes_every_combination_once_with_telling_names(values: dict[str, object]) -> None:
    grid = parse_grid(["lr=1e-2,3e-2,seed=0,1", "target=loss<=0.5,exact_match>=0.9"])
    specs = [make_spec(one) for one in expand_grid({**values, "name": "x"}, grid)]
    assert len(specs) == 8
    assert len({spec.name for spec in specs}) == 8
    assert {(s.learning_rate, s.seed, s.target.metric) for s in specs} == {
        (lr, seed, metric) for lr in (0.01, 0.03) for seed in (0, 1) for metric in ("loss", "exact_match")
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,2", "write key=value"),
        ("lrr=1", "did you mean"),
        ("lr=1,1", "given twice"),
        ("lr=", "empty value"),
        ("lr=1,lr=2", "given twice"),
        ("setup=a", "cannot be swept"),
    ],
)
def test_a_wrong_grid_is_an_error(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse_grid([text])


def test_a_huge_grid_is_taken_for_a_mistake() -> None:
    with pytest.raises(SpecError, match="more than 1000"):
        expand_grid({}, parse_grid(["seed=" + ",".join(map(str, range(1001)))]))


def test_python_construction_complains_too(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="did you mean 'deadline'"):
        JobSpec(**{**values, "dedline": "30m"})


def test_a_hub_id_that_is_not_in_the_cache_is_refused_where_there_is_no_internet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    check_at_hand("modles/tiny", offline=False)  # it may be downloaded
    with pytest.raises(ModelError, match=r"no folder .*modles/tiny and no such model in the hub's cache"):
        check_at_hand("modles/tiny", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="prompttuner fetch gpt2"):
        check_at_hand("gpt2", offline=False)
    (tmp_path / "models--org--tiny" / "snapshots" / "abc").mkdir(parents=True)
    check_at_hand("org/tiny", offline=True)
    check_at_hand(str(tmp_path), offline=True)
