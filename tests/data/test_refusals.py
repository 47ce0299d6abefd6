"""Refusals of language models, told from honest captions by sentences written for this test."""

import csv
from pathlib import Path

import pytest

from fastht.data import refusals
from fastht.data.cases import Case, Reading
from fastht.data.refusals import leave_out_refusals, refusal

SENTENCES = Path(__file__).parent / "refusals.tsv"  # the rules were mended by these
HELD_OUT = SENTENCES.with_name("refusals_held_out.tsv")  # written after the rules, and changed none


def rows(path: Path = SENTENCES) -> list[tuple[bool, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        found = [
            (r["refusal"] == "yes", r["caption"]) for r in csv.DictReader(file, delimiter="\t")
        ]
    return found


def test_refusals_are_told_from_honest_captions() -> None:
    listed = rows()
    assert min(sum(yes for yes, _ in listed), sum(not yes for yes, _ in listed)) >= 60
    wrong = [(yes, text, refusal(text)) for yes, text in listed if bool(refusal(text)) != yes]
    assert wrong == []


def test_sentences_that_changed_no_rule() -> None:
    """The rules rather miss a refusal than drop an honest caption; docs/taxonomy.md has these."""
    listed = rows(HELD_OUT)
    assert sum(bool(refusal(text)) for yes, text in listed if yes) == 4
    assert sum(yes for yes, _ in listed) == 10
    assert not any(refusal(text) for yes, text in listed if not yes)


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
