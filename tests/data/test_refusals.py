"""Refusals of language models, told from honest captions by sentences written for this test."""

import csv
from pathlib import Path

import pytest
from miniature_sets import lines
from PIL import Image

from fastht.cli import main
from fastht.data import load_records, refusals
from fastht.data.cases import Case, Reading
from fastht.data.refusals import leave_out_refusals, refusal

SENTENCES = Path(__file__).parent / "refusals.tsv"  # the rules were mended by these
HELD_OUT = SENTENCES.with_name("refusals_held_out.tsv")  # these changed none


def rows(path: Path = SENTENCES) -> list[tuple[bool, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        found = [
            (r["refusal"] == "yes", r["caption"]) for r in csv.DictReader(file, delimiter="\t")
        ]
    return found


def test_refusals_are_told_from_honest_captions() -> None:
    listed = rows()
    assert min(sum(yes for yes, _ in listed), sum(not yes for yes, _ in listed)) >= 90
    wrong = [(yes, text, refusal(text)) for yes, text in listed if bool(refusal(text)) != yes]
    assert wrong == []


def test_sentences_that_changed_no_rule() -> None:
    """Written before the rules were last mended; the numbers of docs/taxonomy.md are these."""
    listed = rows(HELD_OUT)
    assert sum(yes for yes, _ in listed) == sum(not yes for yes, _ in listed) == 40
    assert sum(bool(refusal(text)) for yes, text in listed if yes) == 31
    assert not any(refusal(text) for yes, text in listed if not yes)
    # The rules rather miss a refusal than take an honest caption for one.
    assert not {text for _, text in listed} & {text for _, text in rows()}


def test_every_rule_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any one rule a sentence is missed, so that none stands there unseen."""
    asked = [text for yes, text in rows() if yes]
    for name in refusals._COMPILED:
        others = {key: rule for key, rule in refusals._COMPILED.items() if key != name}
        with monkeypatch.context() as without:
            without.setattr(refusals, "_COMPILED", others)
            assert not all(map(refusal, asked)), name


def test_spelling_of_quotes_case_and_spaces_does_not_matter() -> None:
    assert refusal("I\u2019M SORRY,\n but  I can\u2019t describe it.") == "speaks of itself"
    assert refusal("") is None


def test_they_are_left_out_counted_and_listed() -> None:
    captions = ["A cyst in the liver.", "A description cannot be generated.", "Round nodule.", ""]
    reading = Reading([Case(str(i), f"{i}.png", caption=c) for i, c in enumerate(captions)])
    leave_out_refusals(reading)
    assert [case.name for case in reading.cases] == ["0", "2", "3"]
    assert reading.left_out == {"caption that refuses to describe": 1}
    (note,) = reading.notes
    assert (note.kind, note.count) == ("refusals", 1)
    assert "1 ('A description cannot be generated.')" in note.text


def test_a_table_s_pairs_keep_them_and_are_told_of_them(tmp_path: Path) -> None:
    refused = "A description of this image cannot be generated."
    captions = [refused, "An oval nodule of the thyroid.", refused, "N/A", "A cyst of the kidney."]
    for i in range(5):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    lines(tmp_path / "t.csv", "filepath,title", *(f"{i}.png,{c}" for i, c in enumerate(captions)))
    found = load_records(tmp_path / "t.csv")
    # Short ones, such as N/A, are dropped and counted as before; nothing else is.
    assert [record.name for record in found] == ["0.png", "1.png", "2.png", "4.png"]
    (note,) = (note for note in found.notes if note.kind == "captions_like_refusals")
    assert note.count == 2
    assert "2 captions that look like refusals to describe: 0.png" in found.account()
    # Its remedy: the table that is exported has none of them, and no such note.
    out = tmp_path / "out"
    assert (
        main(
            [
                "data",
                "export",
                "--data",
                str(tmp_path / "t.csv"),
                "--refusals",
                "drop",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    again = load_records(out / "table.csv")
    assert [Path(record.image).name for record in again] == ["1.png", "4.png"]
    assert not [note for note in again.notes if note.kind == "captions_like_refusals"]
