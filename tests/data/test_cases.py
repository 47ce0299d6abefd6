"""Case sets: what they tell, and what makes them unfit."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastht.data import Case, CaseSet, DataError, read_case_image
from fastht.data.cases import Reading, parse_split, sort_classes, split_part


def test_describe() -> None:
    cases = (
        Case("a", "a.png", label="10", patient="p1", split="train"),
        Case("b", "b.png", label="9", patient="p1", split="train"),
        Case("c", "c.png", label="10", patient="p2", split="test"),
    )
    found = CaseSet(cases, "somewhere", "table", {"normal": 1200})
    assert found.describe() == (
        "3 cases from somewhere (layout table); 1 9, 2 10; 2 patients; train 2, test 1; "
        "left out: 1,200 normal."
    )
    bare = CaseSet((Case("a", "a.png"),), "there", "folder")
    assert bare.describe() == "1 cases from there (layout folder); left out: none."


@given(st.lists(st.integers(-3, 200)))
def test_numeric_classes_go_by_value(numbers: list[int]) -> None:
    assert sort_classes(map(str, numbers)) == tuple(map(str, sorted(set(numbers))))


def test_other_classes_go_as_text() -> None:
    assert sort_classes(["4b", "10", "2", "4a", "2"]) == ("10", "2", "4a", "4b")


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), (" Valid", "val"), ("TESTING", "test"), ("fold1", None), ("", None)],
)
def test_parse_split(name: str, split: str | None) -> None:
    assert parse_split(name) == split


def test_split_part() -> None:
    assert split_part("a/b.nii.gz::12") == ("a/b.nii.gz", "12")
    assert split_part("a::b/c.xml::1") == ("a::b/c.xml", "1")
    assert split_part("a.png") == ("a.png", None)


def test_noting_goes_on_after_a_problem_but_not_after_a_bug() -> None:
    reading = Reading()
    for i in range(3):
        with reading.noting():
            raise DataError(f"problem {i}")
    assert reading.problems == ["problem 0", "problem 1", "problem 2"]
    with pytest.raises(ZeroDivisionError), reading.noting():
        _ = 1 / 0


def test_all_repetitions_are_noted() -> None:
    reading = Reading(
        [
            Case("a", "a.png", split="train"),
            Case("a", "a.png", split="val"),
            Case("a2", "a.png", split="train"),
            Case("b", "b.png"),
            Case("b", "b.jpg"),
        ]
    )
    reading.finish("x", "table", "segment")
    assert reading.problems == [
        "a.png: in train and in val; remove it from one of them",
        "a.png: listed twice; remove one of the two",
        "b.jpg: has the same name as b.png, b; rename one of them",
    ]


def test_images_and_frames_are_read(tmp_path: Path) -> None:
    pages = [Image.new("L", (5, 4), value) for value in (1, 2, 3)]
    path = tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    values = [
        int(np.asarray(read_case_image(Case("a", f"{path}{part}"))).max())
        for part in ("", "::0", "::2")
    ]
    assert values == [2, 1, 3]
    with pytest.raises(DataError, match=r"a\.tif::3: no frame 3"):
        read_case_image(Case("a", f"{path}::3"))
