"""Profile files: the built-in ones, a lab's own, and broken ones."""

import json
import math

import pytest

from prompttuner.errors import ConfigError
from prompttuner.profiles import builtin, load_profile, load_profiles, stated

GOOD = {
    "name": "mine",
    "speedup": [[1, 1.0], [2, 1.8]],
    "step_s": 0.2,
    "queue_s": 1,
    "start_s": 9,
    "warm_s": 1,
    "resize_s": 1,
    "switch_s": 4,
    "lookup_s": 5,
    "origin": "measured by a test",
}


def write(tmp_path, data):
    path = tmp_path / "mine.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_builtin_profiles_say_where_they_come_from():
    assert {"default", "gpt2-base", "gpt2-large", "vicuna-7b"} <= set(builtin())
    assert all(profile.origin for profile in builtin().values())


def test_a_file_takes_the_place_of_the_builtin(tmp_path):
    mine = load_profile(write(tmp_path, {**GOOD, "name": "gpt2-base"}))
    known = stated(["gpt2-base", "other"], [mine])
    assert known["gpt2-base"].step_s == 0.2
    assert "no profile of other" in known["other"].origin


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_s": -1}, "start_s"),
        ({"step_s": 0}, "step_s"),
        ({"speedup": [[2, 1.8]]}, "must begin with"),
        ({"speedup": [[1, 1.0], [2, 0.5]]}, "grow"),
        ({"speedup": 3}, "list of"),
        ({"colour": "red"}, "unknown colour"),
        ({"name": " "}, "name must"),
        ({"start_s": math.nan}, "not a finite number"),
        ({"start_s": 10**400}, "times are numbers"),
        ({"start_s": "9"}, "not a finite number"),
        ({"speedup": [[1, 1.0], [2.5, 2.0]]}, "not a whole number of GPUs"),
        ({"speedup": [[1, 1.0], [math.inf, 2.0]]}, "not a whole number of GPUs"),
        ({"speedup": [[1, 1.0], [2, math.nan]]}, "not a finite number"),
    ],
)
def test_broken_profiles_are_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        load_profile(write(tmp_path, {**GOOD, **change}))


def test_a_folder_holds_one_profile_of_each_llm(tmp_path):
    write(tmp_path, GOOD)
    assert [profile.name for profile in load_profiles([tmp_path])] == ["mine"]
    (tmp_path / "again.json").write_text(json.dumps(GOOD))
    with pytest.raises(ConfigError, match="both profiles of mine"):
        load_profiles([tmp_path])


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(write(tmp_path, "{"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="object"):
        load_profile(write(tmp_path, "[]"))
