"""The layout of TN3K."""

from pathlib import Path

import miniature_sets
import pytest
from miniature_sets import lines

from fastht.data import CaseSet, DataError, load_cases


@pytest.fixture
def root(tmp_path: Path) -> Path:
    miniature_sets.tn3k(tmp_path)
    return tmp_path


def names(found: CaseSet) -> dict[str, list[str]]:
    return {
        split: [case.name[-4:] for case in found.side(split)] for split in ("train", "val", "test")
    }


def test_folds(root: Path) -> None:
    test = ["0000", "0001"]
    first = {"train": ["0001", "0002", "0004"], "val": ["0000", "0003"], "test": test}
    second = {"train": ["0000", "0002", "0003"], "val": ["0001", "0004"], "test": test}
    assert names(load_cases(root)) == first
    assert names(load_cases(root, fold=0)) == first
    assert names(load_cases(root, fold=1)) == second
    with pytest.raises(DataError, match=r"tn3k-trainval-fold2\.json: cannot be read"):
        load_cases(root, fold=2)


def test_without_folds_all_of_trainval_trains(root: Path) -> None:
    for path in root.glob("*.json"):
        path.unlink()
    assert {key: len(side) for key, side in names(load_cases(root)).items()} == {
        "train": 5,
        "val": 0,
        "test": 2,
    }


def test_labels_are_optional_for_segmentation(root: Path) -> None:
    labels = {case.name: case.label for case in load_cases(root)}
    assert labels["trainval-0003"] == "1"
    for path in root.glob("*.csv"):
        path.unlink()
    assert load_cases(root).classes == ()
    with pytest.raises(DataError, match="no image has a label"):
        load_cases(root, task="classify")


def test_images_in_no_side_are_counted(root: Path) -> None:
    lines(root / "tn3k-trainval-fold0.json", '{"train": [4, 1], "val": [0, 3]}')
    assert load_cases(root).left_out == {"image in no side of the fold": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", r"fold0\.json: not of the form"),
        ('{"train": [0]}', r"fold0\.json: not of the form .*KeyError"),
        ('{"train": ["a"], "val": []}', r"fold0\.json: not of the form .*ValueError"),
        ('{"train": [0,], "val": []}', r"fold0\.json: not of the form .*JSONDecodeError"),
        ('{"train": [0, 1], "val": [1]}', r"fold0\.json: an image is listed twice"),
        ('{"train": [0, 1], "val": [77]}', r"1 images of the fold are not there \(e\.g\. 0077\)"),
    ],
)
def test_bad_folds(root: Path, text: str, message: str) -> None:
    lines(root / "tn3k-trainval-fold0.json", text)
    with pytest.raises(DataError, match=message):
        load_cases(root)


def test_missing_files(root: Path) -> None:
    (root / "test-mask" / "0001.jpg").unlink()
    with pytest.raises(DataError, match=r"test-mask: no mask for 0001\.jpg; add it"):
        load_cases(root)
    for path in (root / "test-image").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="test-image: no images; copy"):
        load_cases(root)
