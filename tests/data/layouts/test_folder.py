"""The general layout of folders."""

from pathlib import Path

import miniature_sets
import pytest
from miniature_sets import lines, picture

from fastht.data import DataError, load_cases


def test_labels_patients_and_masks_of_both_names(tmp_path: Path) -> None:
    miniature_sets.folder(tmp_path)
    found = load_cases(tmp_path)
    assert [(case.name, case.label, case.patient, case.split) for case in found] == [
        ("0", "cyst", "p0", None),
        ("1", "cyst", "p0", None),
        ("2", "mass", "p1", None),
        ("3", "mass", "p1", None),
    ]
    (tmp_path / "labels.csv").unlink()
    assert load_cases(tmp_path).classes == ()


@pytest.mark.parametrize("shared", [True, False])
def test_splits_above_with_shared_or_own_labels(tmp_path: Path, shared: bool) -> None:
    for name, split in (("train", "train"), ("valid", "val"), ("Test", "test")):
        miniature_sets.folder(tmp_path / name)
        if shared:
            (tmp_path / name / "labels.csv").rename(tmp_path / "labels.csv")
        found = load_cases(tmp_path).side(split)
        assert [case.name for case in found] == [f"{split}-{i}" for i in range(4)]
        assert found[3].label == "mass"


def test_labels_by_paths(tmp_path: Path) -> None:
    miniature_sets.folder(tmp_path)
    lines(tmp_path / "labels.csv", "images/0.png,cyst,p0", "1.png,mass,p1", "gone/2.png,mass,p1")
    found = load_cases(tmp_path)
    assert [case.patient for case in found] == ["p0", "p1", None, None]
    assert "without image: gone/2.png" in found.account()


def test_class_folders(tmp_path: Path) -> None:
    miniature_sets.class_folders(tmp_path)
    found = load_cases(tmp_path, task="classify")
    assert [(case.name, case.label) for case in found] == [
        ("cyst-0", "cyst"),
        ("cyst-1", "cyst"),
        ("mass-2", "mass"),
        ("mass-3", "mass"),
    ]
    with pytest.raises(DataError, match="no folder images; class folders are for classification"):
        load_cases(tmp_path)


def test_patients_of_class_folders(tmp_path: Path) -> None:
    for name in ("cyst/1.png", "cyst/2.png", "mass/1.png", "mass/3.png"):
        picture(tmp_path / name)
    table = tmp_path / "labels.csv"
    lines(table, "cyst/1.png,cyst,a", "2.png,cyst,b", "mass\\1.png,mass,c", "gone.png,mass,d")
    found = load_cases(tmp_path, task="classify")
    assert [(case.name, case.patient) for case in found] == [
        ("cyst-1", "a"), ("cyst-2", "b"), ("mass-1", "c"), ("mass-3", None),
    ]  # fmt: skip
    assert "1 row of" in found.account()
    lines(table, "1.png,,a", "2.png,cyst,b")
    with pytest.raises(DataError, match=r"may be .*cyst/1.png or .*name the .* folder, mass/1.png"):
        load_cases(tmp_path, task="classify")
    lines(table, "2.png,mass,b")
    with pytest.raises(DataError, match=r"2\.png: lies in cyst and is mass in .*; correct one"):
        load_cases(tmp_path, task="classify")


def test_class_folders_under_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        miniature_sets.class_folders(tmp_path / split)
    found = load_cases(tmp_path, task="classify")
    assert found.layout == "folder"
    assert found.cases[0].name == "test-cyst-0"
    assert (len(found.side("train")), len(found.side("test"))) == (4, 4)


def test_damage_is_named(tmp_path: Path) -> None:
    miniature_sets.folder(tmp_path)
    (tmp_path / "masks" / "1_mask.png").unlink()
    with pytest.raises(DataError, match=r"images/1\.png: no mask .*masks/1\.png; add it"):
        load_cases(tmp_path)
    (tmp_path / "labels.csv").write_bytes("filename,label\n0.png,Zyste groß\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels\.csv: not UTF-8"):
        load_cases(tmp_path)
    (tmp_path / "labels.csv").unlink()
    for path in (tmp_path / "masks").iterdir():
        path.unlink()
    (tmp_path / "masks").rmdir()
    with pytest.raises(DataError, match="masks: no such folder; segmentation needs masks"):
        load_cases(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="images: no images; add some"):
        load_cases(tmp_path)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    miniature_sets.folder(tmp_path)
    picture(tmp_path / "images" / "1.jpg")
    with pytest.raises(DataError, match=r"has the same name as .*images/1\.jpg, 1; rename"):
        load_cases(tmp_path)


def test_labels_without_header(tmp_path: Path) -> None:
    miniature_sets.folder(tmp_path)
    lines(tmp_path / "labels.csv", *(f"{i}.png,{i}" for i in range(4)))
    assert load_cases(tmp_path, task="classify").classes == ("0", "1", "2", "3")
