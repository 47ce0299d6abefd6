"""What holds for every layout: detection, masks pixel by pixel, what load_cases refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import miniature_sets
import numpy as np
import pytest

from fastht.data import DataError, load_cases, read_case_image, read_mask
from fastht.data.layouts import LAYOUTS

# Those with masks in files; the others are in test_more.py.
MASKED = ("published", "busi", "ddti", "tn3k", "prostate", "table", "folder")
MAKERS: dict[str, Callable[[Path], miniature_sets.Masks]] = {
    key: getattr(miniature_sets, key) for key in MASKED
}
OPTIONS = {"published": {"name": "BUSI"}, "busi": {"include_normal": True}}


def source(root: Path, layout: str) -> Path:
    return root / "table.csv" if layout == "table" else root


@pytest.mark.parametrize("layout", MASKED)
def test_is_recognised_and_read_whole(tmp_path: Path, layout: str) -> None:
    expected = MAKERS[layout](tmp_path / "set")
    data = source(tmp_path / "set", layout)
    found = load_cases(data, **OPTIONS.get(layout, {}))
    assert found.layout == layout
    assert found.source == str(data)
    expected.pop("other", None)  # published: of the set that was not asked for
    assert {case.name for case in found} == expected.keys()
    for case in found:
        assert read_case_image(case).size == (miniature_sets.WIDTH, miniature_sets.HEIGHT)
        mask = read_mask(case)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected[case.name], err_msg=case.name)
    for part in (f"{len(found)} cases", str(data), layout):
        assert part in found.describe()


@pytest.mark.parametrize("layout", sorted({*MASKED} - {"prostate"}))
def test_classification_needs_no_masks(tmp_path: Path, layout: str) -> None:
    MAKERS[layout](tmp_path / "set")
    for path in (tmp_path / "set").rglob("*mask*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (tmp_path / "set").glob("marks/*"):
        path.unlink()
    data = source(tmp_path / "set", layout)
    found = load_cases(data, task="classify", layout=layout)
    assert len(found.classes) == 2
    assert all(case.label in found.classes and not case.masks for case in found)


def test_unknown_folder_gets_a_description_of_all_layouts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="fits no layout") as caught:
        load_cases(tmp_path / "empty")
    for key, layout in LAYOUTS.items():
        assert f"{key} " in str(caught.value)
        assert layout.looks in str(caught.value)


def test_two_layouts_in_one_folder_are_refused(tmp_path: Path) -> None:
    miniature_sets.busi(tmp_path)
    miniature_sets.tn3k(tmp_path)
    with pytest.raises(DataError, match=r"several layouts \(busi, tn3k\)"):
        load_cases(tmp_path)
    assert len(load_cases(tmp_path, layout="busi")) == 5


def test_wrong_arguments(tmp_path: Path) -> None:
    miniature_sets.busi(tmp_path / "busi")
    with pytest.raises(DataError, match="fold is for layouts tn3k and bus-bra, not for busi; omit"):
        load_cases(tmp_path / "busi", fold=0)
    with pytest.raises(DataError, match="no layout 'bus'; choose one of published, busi"):
        load_cases(tmp_path / "busi", layout="bus")
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        load_cases(tmp_path / "nowhere")


def test_the_first_problem_is_raised_and_the_others_counted(tmp_path: Path) -> None:
    miniature_sets.busi(tmp_path)
    for path in sorted(tmp_path.glob("benign/benign (?)_mask.png"))[:2]:
        path.unlink()
    (tmp_path / "benign" / "benign (2)_mask_1.png").unlink()
    (tmp_path / "benign" / "benign (2)_mask_2.png").unlink()
    with pytest.raises(DataError, match=r"benign \(1\)\.png: no mask.*\(1 more: see `fastht data"):
        load_cases(tmp_path)


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    miniature_sets.busi(tmp_path)
    for label in ("benign", "malignant"):
        shutil.rmtree(tmp_path / label)
    with pytest.raises(DataError, match=r"no image is left; .*left out: 2 normal, no lesion"):
        load_cases(tmp_path)
