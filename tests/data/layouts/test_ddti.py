"""The layout of DDTI."""

from pathlib import Path

import miniature_sets
import pytest
from miniature_sets import annotation, lines, picture, rectangle

from fastht.data import DataError, load_cases


@pytest.fixture
def root(tmp_path: Path) -> Path:
    miniature_sets.ddti(tmp_path / "ddti")
    return tmp_path / "ddti"


def test_labels_and_patients(root: Path) -> None:
    found = load_cases(root)
    assert [(case.name, case.label, case.patient) for case in found] == [
        ("1_1", "4a", "1"),
        ("1_2", "4a", "1"),
        ("2_1", "2", "2"),
        ("10_1", None, "10"),
    ]
    assert found.left_out == {"image without outline": 1}
    assert found.cases[0].masks == (f"{root}/1.xml::1",)


def test_classification_takes_unmarked_images_and_no_uncategorised_ones(root: Path) -> None:
    found = load_cases(root, task="classify")
    assert [case.name for case in found] == ["1_1", "1_2", "2_1", "2_2"]
    assert found.left_out == {"image without TI-RADS category": 1}
    binary = load_cases(root, task="classify", benign_malignant=True)
    assert [case.label for case in binary] == ["malignant"] * 2 + ["benign"] * 2


@pytest.mark.parametrize(
    ("category", "label"),
    [
        ("2", "benign"),
        ("3", "benign"),
        ("4a", "malignant"),
        ("4C", "malignant"),
        ("5", "malignant"),
    ],
)
def test_mapping_of_categories(root: Path, category: str, label: str) -> None:
    lines(root / "1.xml", annotation(1, category, {1: [rectangle(1, 1)]}))
    assert load_cases(root, benign_malignant=True).cases[0].label == label
    assert load_cases(root).cases[0].label == category


def test_unknown_category(root: Path) -> None:
    lines(root / "1.xml", annotation(1, "6", {1: [rectangle(1, 1)]}))
    with pytest.raises(DataError, match=r"1\.xml: TI-RADS category '6' is none of 2, 3, 4a"):
        load_cases(root, benign_malignant=True)


def test_image_and_annotation_need_each_other(root: Path) -> None:
    (root / "1_2.jpg").unlink()
    assert load_cases(root).left_out["outlined image missing"] == 1
    picture(root / "77_1.jpg")
    with pytest.raises(DataError, match=r"77_1\.jpg: no annotation 77\.xml"):
        load_cases(root)


def test_a_damaged_annotation_is_told_once(root: Path) -> None:
    (root / "1.xml").write_text("<case><number>1</number>")
    with pytest.raises(DataError, match=r"1\.xml: not XML \(no element found.*copy it again$"):
        load_cases(root)
