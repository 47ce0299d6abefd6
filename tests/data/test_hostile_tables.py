"""Tables as programs and people write them: what means the same is read so, or said, or refused."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from miniature_sets import picture

from fastht.data import DataError, RecordSet, load_cases, load_records
from fastht.data.notes import count_notes

CAPTION = "An oval hypoechoic mass with circumscribed margins"
Read = Callable[..., RecordSet]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a table of rows of image, patient and label, each with a caption, and read it."""
    for name in "0123":
        picture(tmp_path / f"{name}.png", seed=int(name))

    def write_and_read(*rows: str) -> RecordSet:
        lines = [f"{row},{CAPTION} no. {i}" for i, row in enumerate(rows)]
        text = "\n".join(["filepath,patient,label,title", *lines])
        (tmp_path / "table.csv").write_text(text, encoding="utf-8")
        return load_records(tmp_path / "table.csv")

    return write_and_read


@pytest.mark.parametrize("word", ["nan", "NaN", "N/A", "<NA>", "NULL", "#N/A"])
def test_words_for_nothing_are_nobody_and_no_class(read: Read, word: str, tmp_path: Path) -> None:
    found = read(f"0.png,{word},x", f"1.png,{word},{word}", "2.png,p,y")
    assert [(record.patient, record.label) for record in found] == [
        (None, "x"),
        (None, None),
        ("p", "y"),
    ]
    assert count_notes(found.notes)["cells_read_as_empty"] == 3
    assert "2 cells of column patient read as empty" in found.account()
    cases = load_cases(tmp_path / "table.csv", task="image")
    assert [(case.patient, case.label) for case in cases] == [(r.patient, r.label) for r in found]
    assert count_notes(cases.notes)["cells_read_as_empty"] == 3


def test_none_may_be_a_class_but_is_nobody(read: Read) -> None:
    found = read("0.png,none,none", "1.png,a,x")
    assert [(record.patient, record.label) for record in found] == [(None, "none"), ("a", "x")]


@pytest.mark.parametrize("names", ["1 1.0", "007 7", "P_01 p01", "A\u00a0b a_b"])
def test_patients_who_may_be_one_are_told(read: Read, names: str, tmp_path: Path) -> None:
    one, other = names.split(" ")
    found = read(f"0.png,{one},x", f"1.png,{other},x", "2.png,70,x")
    assert len({record.patient for record in found}) == 3
    (note,) = [note for note in found.notes if note.kind == "patients_alike"]
    assert note.count == 1
    assert "write those who are one alike" in note.text
    cases = load_cases(tmp_path / "table.csv", task="image")
    assert note in cases.notes


def test_other_patients_are_not(read: Read) -> None:
    found = read("0.png,10,x", "1.png,1,x", "2.png,1.5,x", "3.png,-1,x")
    assert found.notes == ()


def test_names_are_the_same_in_every_form_of_unicode(read: Read, tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "Lésion é")
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    picture(tmp_path / f"{decomposed}.png", seed=8)
    found = read(f"{composed}.png,{composed},x", f"0.png,{decomposed},x")
    assert {record.patient for record in found} == {composed}
    assert found.dropped == {}
    cases = load_cases(tmp_path / "table.csv", task="image")
    assert {case.patient for case in cases} == {composed}


def test_an_image_of_two_patients_is_refused(read: Read) -> None:
    with pytest.raises(DataError, match=r"0\.png is of a and b, by its rows; give an image one"):
        read("0.png,a,x", "0.png,b,x", "1.png,c,x")
    assert len(read("0.png,a,x", "0.png,a,x")) == 2  # with two captions


def test_an_image_of_two_labels_and_labels_that_are_one_number_are_told(read: Read) -> None:
    assert count_notes(read("0.png,a,x", "0.png,a,y").notes) == {"images_of_several_labels": 1}
    found = read("0.png,a,0", "1.png,b,0.0", "2.png,c,1")
    assert "labels that differ in spelling alone: 0, 0.0" in found.account()


def test_rows_of_separators_alone_are_none(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    text = f"filepath,title\n0.png,{CAPTION}\n,\n,,,\n \t,\n"
    (tmp_path / "table.csv").write_text(text)
    assert load_records(tmp_path / "table.csv").describe().endswith("dropped: none.")


def test_endless_names_do_not_fill_the_screen(read: Read, tmp_path: Path) -> None:
    endless = "a" * 5000 + ".png"
    assert len(read(f"{endless},a,x", "0.png,b,x").describe()) < 500
    with pytest.raises(DataError, match=r"no image .*a [.]{3} a") as caught:
        load_cases(tmp_path / "table.csv", task="image")
    assert len(str(caught.value)) < 500
