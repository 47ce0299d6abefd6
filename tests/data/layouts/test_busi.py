"""The layout of BUSI."""

from pathlib import Path

import miniature_sets
import pytest

from fastht.data import DataError, load_cases


@pytest.fixture
def root(tmp_path: Path) -> Path:
    miniature_sets.busi(tmp_path)
    return tmp_path


def test_labels_order_and_what_is_left_out(root: Path) -> None:
    found = load_cases(root)
    assert [(case.name, case.label, len(case.masks)) for case in found] == [
        ("benign (1)", "benign", 1),
        ("benign (2)", "benign", 3),
        ("benign (3)", "benign", 1),
        ("malignant (1)", "malignant", 1),
        ("malignant (2)", "malignant", 1),
    ]
    assert found.left_out == {"normal, no lesion": 2}
    assert all(case.split is None and case.patient is None for case in found)


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_normal_images_on_request(root: Path, task: str) -> None:
    found = load_cases(root, task=task, include_normal=True)
    assert found.classes == ("benign", "malignant", "normal")
    assert found.left_out == {}


def test_natural_order(root: Path) -> None:
    for path in sorted((root / "benign").glob("benign (1)*")):
        path.rename(path.with_name(path.name.replace("(1)", "(10)")))
    names = [case.name for case in load_cases(root, task="classify")]
    assert names[:3] == ["benign (2)", "benign (3)", "benign (10)"]


def test_mask_and_image_need_each_other(root: Path) -> None:
    (root / "malignant" / "malignant (1).png").unlink()
    with pytest.raises(
        DataError, match=r"malignant \(1\)_mask\.png: no image malignant \(1\); add"
    ):
        load_cases(root)
    (root / "malignant" / "malignant (1)_mask.png").unlink()
    (root / "malignant" / "malignant (2)_mask.png").unlink()
    with pytest.raises(DataError, match=r"malignant \(2\)\.png: no mask malignant \(2\)_mask\.png"):
        load_cases(root)


def test_hidden_and_other_files_are_no_images(root: Path) -> None:
    (root / "benign" / "._benign (1).png").write_bytes(b"")
    (root / "benign" / "Thumbs.db").write_bytes(b"")
    assert len(load_cases(root)) == 5
