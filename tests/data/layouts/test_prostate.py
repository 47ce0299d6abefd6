"""The layout of the micro-ultrasound prostate set."""

from pathlib import Path

import miniature_sets
import numpy as np
import pytest

from fastht.data import DataError, load_cases


@pytest.fixture
def root(tmp_path: Path) -> Path:
    miniature_sets.prostate(tmp_path)
    return tmp_path


def test_slices_are_cases_and_volumes_patients(root: Path) -> None:
    found = load_cases(root)
    assert [case.name for case in found][:4] == [
        "microUS_train_01-000",
        "microUS_train_01-001",
        "microUS_train_01-002",
        "microUS_train_02-000",
    ]
    assert {(case.patient, case.split) for case in found} == {
        ("microUS_train_01", "train"),
        ("microUS_train_02", "train"),
        ("microUS_test_01", "test"),
    }
    first = found.cases[1]
    scan = root / "train" / "micro_ultrasound_scans" / "microUS_train_01.nii.gz"
    assert first.image == f"{scan}::1"


def test_empty_slices_can_be_left_out(root: Path) -> None:
    found = load_cases(root, skip_empty=True)
    assert found.left_out == {"slice without prostate": 3}
    assert [case.name[-3:] for case in found] == ["001", "002"] * 3


def test_other_annotators_are_ignored_and_either_split_will_do(root: Path) -> None:
    miniature_sets.volume(
        root / "train" / "non_expert_annotations" / "nonexpert_annotation_train_01.nii.gz",
        np.zeros((3, 4, 4), np.uint8),
    )
    for path in sorted((root / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert len(load_cases(root)) == 6


def test_numbers_match_however_they_are_padded(root: Path) -> None:
    masks = root / "train" / "expert_annotations"
    (masks / "expert_annotation_train_01.nii.gz").rename(masks / "prostate1.nii.gz")
    assert len(load_cases(root)) == 9


def test_damage_is_named(root: Path) -> None:
    masks = root / "train" / "expert_annotations"
    miniature_sets.volume(masks / "expert_annotation_train_01.nii.gz", np.ones((3, 4, 5), np.uint8))
    with pytest.raises(DataError, match=r"_01\.nii\.gz: 3 x 4 x 5 voxels, .* has 3 x 10 x 14"):
        load_cases(root)
    (masks / "expert_annotation_train_01.nii.gz").unlink()
    with pytest.raises(DataError, match=r"microUS_train_01\.nii\.gz: no annotation in expert_anno"):
        load_cases(root)
    (root / "train" / "micro_ultrasound_scans" / "microUS_train_01.nii.gz").unlink()
    (masks / "expert_annotation_train_02.nii.gz").rename(masks / "x_01.nii.gz")
    with pytest.raises(DataError, match=r"x_01\.nii\.gz: no scan of this number"):
        load_cases(root)
    (masks / "y1.nii").write_bytes(b"")
    with pytest.raises(DataError, match=r"y1\.nii: has the same number as x_01\.nii\.gz"):
        load_cases(root)
    with pytest.raises(DataError):
        load_cases(root, task="classify")
