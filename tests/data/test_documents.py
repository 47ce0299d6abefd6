"""JSON and JSON Lines: their forms, dotted keys, damage."""

from pathlib import Path

import pytest

from fastht.data import DataError
from fastht.data.documents import read_rows, value_at


def rows(tmp_path: Path, name: str, text: str) -> list[tuple[str, dict[str, object]]]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8-sig")
    return [(where.removeprefix(str(tmp_path)), row) for where, row in read_rows(path)]


def test_forms(tmp_path: Path) -> None:
    assert rows(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": "中"}\n') == [
        ("/a.jsonl, line 1", {"a": 1}),
        ("/a.jsonl, line 3", {"a": "中"}),
    ]
    assert rows(tmp_path, "a.json", '[{"a": 1}]') == [("/a.json, entry 0", {"a": 1})]
    assert rows(tmp_path, "a.json", '{"x": {"a": 1}}') == [("/a.json, x", {"a": 1})]
    split = '{"train": [{"a": 1}], "test": [{"a": 2, "split": "val"}]}'
    assert rows(tmp_path, "a.json", split) == [
        ("/a.json, train 0", {"a": 1, "split": "train"}),
        ("/a.json, test 0", {"a": 2, "split": "val"}),  # what a row says goes before
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1]", "entry 0: not a JSON object"),
        ("a.json", "3", "neither a list of objects"),
        ("a.json", "[]", "no objects; it needs at least one"),
        ("a.json", '{"a": 1', "not JSON"),
        ("a.json", '[{"a": 1, "a": 2}]', "key a is there twice"),
        ("a.jsonl", '{"a": 1}\n{"a"}', r"line 2: not JSON"),
        ("a.jsonl", '{"a": 1, "b": 1, "a": 2}', "line 1: key a is there twice"),
        ("a.jsonl", "", "no objects"),
    ],
)
def test_damage(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(tmp_path, name, text)


def test_dotted_keys() -> None:
    row = {"a": {"b": [{"c": 1}, 2]}, "a.b": "own"}
    assert value_at(row, "a.b") == "own"  # a field whose own name has a dot goes before
    assert value_at({"a": {"b": [{"c": 1}, 2]}}, "a.b.0.c") == 1
    assert value_at({"a": {"b": [{"c": 1}, 2]}}, "a.b.1") == 2
    for key in ("a.b.2", "a.x", "x", "a.b.c", "a.b.1.d"):
        assert value_at({"a": {"b": [{"c": 1}, 2]}}, key) is None
