"""`fastht captions`: files in, files out, and what is said of them."""

import csv
import json
import math
from pathlib import Path

import pytest

from fastht.captions.engine import Captioned, Result
from fastht.captions.statistics import WINDOW, describe, says
from fastht.cli import main

REPORT = "An oval mass, as the report has it: 12 mm."


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        "a/1.png,benign,oval,,p1,a note,one",
        "b/1.png,malignant,irregular,,p2,,one",
        "b/2.png,benign,,An oval benign mass of the breast.,p3,,two",
        f'b/3.png,,,,p4,"{REPORT}",two',
    ]
    path = tmp_path / "in" / "table.csv"
    path.parent.mkdir()
    header = "filepath,label,shape,llm_caption,patient,report,source"
    path.write_text("\n".join([header, *[r.replace("a note", "") for r in rows]]))
    return path


def run(*arguments: object) -> int:
    return main(["captions", *map(str, arguments), "--model", "none"])


def read(out: Path) -> list[dict[str, str]]:
    with (out / "captions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_columns_are_kept_and_captions_added(table: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert run(table, "--out", out, "--captions-per-image", 2) == 0
    rows = read(out)
    assert list(rows[0])[:1] + list(rows[0])[-3:] == ["filepath", "title", "title_2", "tier"]
    assert [row["filepath"] for row in rows] == ["a/1.png", "b/1.png", "b/2.png", "b/3.png"]
    assert [row["tier"] for row in rows] == ["metadata", "metadata", "llm", "report"]
    assert rows[2]["title"] == "An oval benign mass of the breast."
    assert (rows[3]["title"], rows[3]["title_2"]) == (REPORT, "")
    found = json.loads((out / "captions.json").read_text())
    assert found["tiers_by_source"] == {
        "one": {"metadata": 2},
        "two": {"llm": 1, "report": 1},
    }
    assert found["label_stated"] == {"captions": 5, "of": 5, "share": 1.0}
    said = capsys.readouterr().out
    assert "note: 5 of 5 captions state the label" in said
    assert "note: 2 rows have fewer than 2 different captions" in said
    assert f"--image-dirs {table.parent}" in said


def test_files_are_the_same_bytes_again_and_are_not_replaced(table: Path, tmp_path, capsys) -> None:
    for name in "ab":
        assert run(table, "--out", tmp_path / name) == 0
    for file in ("captions.csv", "captions.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    capsys.readouterr()
    assert run(table, "--out", tmp_path / "a") == 1
    assert "is there already; give another, or --overwrite" in capsys.readouterr().err
    assert run(table, "--out", tmp_path / "a", "--overwrite", "--seed", 1) == 0
    assert read(tmp_path / "a") != read(tmp_path / "b")


def test_statistics_do_not_depend_on_the_order_of_rows(table: Path, tmp_path: Path) -> None:
    header, *rows = table.read_text().splitlines()
    other = table.with_name("turned.csv")
    other.write_text("\n".join([header, *rows[::-1]]))
    for name, path in (("a", table), ("b", other)):
        assert run(path, "--out", tmp_path / name) == 0
    first, second = ((tmp_path / n / "captions.json").read_text() for n in "ab")
    assert first == second
    assert read(tmp_path / "a") == read(tmp_path / "b")[::-1]


def test_captions_of_a_language_model_go_out_and_come_back(table, tmp_path, capsys) -> None:
    prompts = tmp_path / "prompts.jsonl"
    assert run(table, "--out", tmp_path / "a", "--write-prompts", prompts) == 0
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a/1.png", "b/1.png", "b/2.png", "b/3.png"]
    assert lines[0]["fields"] == {"condition": "a benign mass", "shape": "oval"}
    assert lines[2]["fields"] == {"condition": "a benign mass"}  # no caption among them
    assert "5 to 60 words" in lines[0]["instruction"]
    back = tmp_path / "back.jsonl"
    good = "Breast ultrasound that shows an oval benign mass."
    answers = [
        {"id": "a/1.png", "captions": [good, "Breast ultrasound of a malignant oval mass."]},
        {"id": "b/1.png", "caption": "Breast ultrasound with BI-RADS 5 findings."},
        {"id": "2.png", "caption": "Short."},
    ]
    back.write_text("\n".join(map(json.dumps, answers)))
    capsys.readouterr()
    assert run(table, "--out", tmp_path / "b", "--llm-captions", back) == 0
    rows = read(tmp_path / "b")
    assert rows[0]["title"] == good
    assert [row["tier"] for row in rows] == ["llm", "metadata", "condition", "report"]
    found = json.loads((tmp_path / "b" / "captions.json").read_text())
    reasons = {
        "number that is not in the fields": 1,
        "term that is not in the fields": 1,
        "too short": 1,
    }
    assert found["refused"] == reasons
    assert "not taken: 1 number that is not in the fields, 1 term" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1.png", "caption": "x"}', "1.png is the name of several images of the table"),
        ('{"id": "9.png", "caption": "x"}', "9.png is no image of the table"),
        ('{"caption": "x"}', "line 1: not a line of id and caption (KeyError"),
        ("x", "line 1: not a line of id and caption"),
        ('{"id": "b/2.png", "caption": "x"}\n{"id": "2.png", "caption": "y"}', "twice"),
    ],
)
def test_answers_that_cannot_be_joined_are_refused(table, tmp_path, capsys, line, message) -> None:
    back = tmp_path / "back.jsonl"
    back.write_text(line)
    assert run(table, "--out", tmp_path / "out", "--llm-captions", back) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_column_of_any_name_may_be_the_language_models(table, tmp_path, capsys) -> None:
    text = table.read_text().replace("llm_caption", "qwen")
    table.write_text(text)
    assert run(table, "--out", tmp_path / "out", "--llm-column", "qwen") == 0
    assert read(tmp_path / "out")[2]["tier"] == "llm"
    assert run(table, "--out", tmp_path / "b", "--llm-column", "gpt") == 1
    assert "no column 'gpt'; the columns are filepath" in capsys.readouterr().err


def test_the_sample_keeps_its_own_captions(tmp_path: Path, capsys) -> None:
    pytest.importorskip("open_clip")
    assert main(["captions", "--data", "sample", "--out", str(tmp_path)]) == 0
    rows = read(tmp_path)
    assert len(rows) == 320
    assert all(row["title_before"] != row["title"] for row in rows)
    found = json.loads((tmp_path / "captions.json").read_text())
    assert found["tokens"]["context"] == 77
    assert 0 < found["tokens"]["median"] < found["tokens"]["max"] <= 77
    assert found["tokens"]["truncated"] == 0
    assert 0 < found["distinct_2"] < 1
    assert "the column title that was there is now title_before" in capsys.readouterr().out


def test_one_table_is_needed(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run("--out", tmp_path)
    assert "give one table: TABLE, or --data TABLE" in capsys.readouterr().err


def test_distinct_words_are_counted_over_equal_lengths() -> None:
    def found(n: int, words: int) -> dict:
        rows = [
            Captioned(f"{i}", None, {}, "t", (" ".join(f"w{i % words} v{i % words}".split()),), ())
            for i in range(n)
        ]
        return describe(Result(tuple(rows), {}), sources=[None] * n, tokens=None, context=77)

    short, long = found(WINDOW, 20), found(4 * WINDOW, 20)
    assert short["distinct_1"] == long["distinct_1"] == 40 / WINDOW
    assert found(WINDOW, 200)["distinct_1"] == 400 / WINDOW
    assert found(10, 5)["distinct_1"] is None  # too few words to compare
    assert math.isclose(short["most_frequent"][0]["share"], 1 / 20)


def test_labels_are_said_as_words() -> None:
    assert says("An image of a Benign mass.", "benign")
    assert says("A cyst.", "a cyst")
    assert not says("A cystic mass.", "cyst")
