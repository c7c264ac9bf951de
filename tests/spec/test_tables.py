"""Data as tables and JSON arrays: read like JSONL, mistakes named by place."""

from __future__ import annotations

from pathlib import Path

import pytest

from prompttuner.errors import DataError
from prompttuner.spec.data import Sample, count_samples, read_samples

WANTED = [Sample("a, b", 'say "x"'), Sample("two\nlines", "y")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'id,input,target\n1,"a, b","say ""x"""\n2,"two\nlines",y\n'),
        ("t.CSV", '\ufefftarget,input\r\n"say ""x""","a, b"\r\n\r\ny,"two\nlines"\r\n'),
        ("t.tsv", 'input\ttarget\na, b\t"say ""x"""\n"two\nlines"\ty\n'),
        (
            "t.json",
            '[{"input": "a, b", "target": "say \\"x\\""},\n {"input": "two\\nlines", "target": "y", "z": 1}]',
        ),
    ],
)
def test_is_read_like_json_lines(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text, newline="")
    assert read_samples(file) == WANTED
    assert read_samples(file, 1) == WANTED[:1]
    assert count_samples(file) == 2


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("t.csv", b"input,label\na,b\n", "line 2: has no 'target' .its keys are: input, label"),
        ("t.csv", b"input,target\na,b\nc\n", "line 3: has no 'target'"),
        ("t.csv", b"input,target\na,b,c\n", "line 2: has more values than the header"),
        ("t.csv", b"input,target\na,\n", "line 2: 'target' is empty"),
        ("t.csv", b"input,target,input\na,b,c\n", "names a column twice"),
        ("t.csv", b'input,target\n"a,b\n', "broken table"),
        ("t.csv", b"input,target\n\xff,b\n", "not UTF-8 text"),
        ("t.csv", b"input,target\n", "holds no samples"),
        ("t.tsv", b"", "holds no samples"),
        ("t.json", b'[{"input": "a"}]', "element 1: has no 'target'"),
        ("t.json", b'[{"input": "a", "target": 3}]', "element 1: 'target' must be text, not int"),
        ("t.json", b"[", "line 1, column 2: broken JSON"),
        ("t.json", b"[]", "holds no samples"),
    ],
)
def test_a_mistake_names_its_place(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words):
        count_samples(tmp_path / name)
