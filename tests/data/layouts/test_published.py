"""The layout of the paper's data."""

from pathlib import Path

import miniature_sets
import pytest
from miniature_sets import lines, picture

from fastht.data import CaseSet, DataError, load_cases


@pytest.fixture
def root(tmp_path: Path) -> Path:
    miniature_sets.published(tmp_path)
    return tmp_path


def segment(root: Path) -> CaseSet:
    return load_cases(root, name="BUSI")


def test_splits_come_from_the_lists(root: Path) -> None:
    found = segment(root)
    sides = {split: [case.name for case in found.side(split)] for split in ("train", "val", "test")}
    assert sides == {
        "train": ["case (0)", "case (1)", "case (2)"],
        "val": ["case (3)"],
        "test": ["case (4)", "case (5)"],
    }
    assert found.classes == ()


@pytest.mark.parametrize("header", [None, "name,label", "filename, Label"])
def test_labels_with_and_without_header(root: Path, header: str | None) -> None:
    path = root / "classification" / "BUSI" / "labels.csv"
    if header:
        lines(path, header, *path.read_text().splitlines())
    found = load_cases(root, task="classify")  # the only set of this task
    assert [case.label for case in found] == ["0", "1"] * 3
    assert found.classes == ("0", "1")


def test_mask_may_have_another_suffix(root: Path) -> None:
    miniature_sets.lines(root / "segmentation" / "OTHER" / "train.txt", "other.jpg")
    for split in ("val", "test"):
        name = f"more-{split}.png"
        picture(root / "all" / "images" / name)
        picture(root / "all" / "masks" / name)
        lines(root / "segmentation" / "OTHER" / f"{split}.txt", name)
    case = load_cases(root, name="OTHER").cases[0]
    assert Path(case.image).name == "other.jpg"
    assert [Path(mask).name for mask in case.masks] == ["other.png"]


def test_data_set_has_to_be_named(root: Path) -> None:
    with pytest.raises(DataError, match="several data sets; name one of BUSI, OTHER"):
        load_cases(root)
    with pytest.raises(DataError, match="no data set DDTI; name one of BUSI, OTHER"):
        load_cases(root, name="DDTI")
    for path in sorted((root / "classification").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(DataError, match="classification: no data set; add a folder of lists"):
        load_cases(root, task="classify")


@pytest.mark.parametrize("end", ["\r\n", "\n\n", "  \n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_lists_of_other_editors(root: Path, end: str, bom: str) -> None:
    path = root / "segmentation" / "BUSI" / "train.txt"
    names = path.read_text().split("\n")
    path.write_bytes((bom + end.join(names)).encode())
    assert len(segment(root)) == 6


def test_damage_is_named(root: Path) -> None:
    lists = root / "segmentation" / "BUSI"
    (root / "all" / "masks" / "case (1).png").unlink()
    with pytest.raises(DataError, match=r"masks: no mask for case \(1\)\.png; add case \(1\)\.png"):
        segment(root)
    lines(lists / "train.txt", "case (0).png", "gone.png")
    with pytest.raises(DataError, match=r"train\.txt: gone\.png is not in .*images; add it"):
        segment(root)
    lines(lists / "train.txt", "case (0).png", "case (0).png")
    with pytest.raises(DataError, match=r"case \(0\)\.png: listed twice; remove one"):
        segment(root)
    lines(lists / "train.txt", "case (0).png", "case (4).png")
    with pytest.raises(DataError, match=r"case \(4\)\.png: in train and in test; remove it"):
        segment(root)
    lines(lists / "train.txt", "")
    with pytest.raises(DataError, match=r"train\.txt: the list is empty; write one"):
        segment(root)
    (lists / "train.txt").write_text("case (0).png\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"train\.txt: not UTF-8"):
        segment(root)
    (lists / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train\.txt: cannot be read \(No such file"):
        segment(root)


def test_ambiguous_masks_are_refused(root: Path) -> None:
    picture(root / "all" / "masks" / "other.bmp")
    with pytest.raises(DataError, match=r"both other\.(bmp and other\.png|png and other\.bmp) fit"):
        load_cases(root, name="OTHER")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["case (0).png,1"], r"labels\.csv: no row for case \(1\)\.png; add it"),
        (["case (0).png,1", "case (0).png,0"], r"line 2: case \(0\)\.png has another row before"),
        (["case (0).png"], "line 1: not a row of image file, label"),
        (["label,name", "1,case (0).png"], "line 1: the second column has to be the label"),
        (["name,label", "case 0,1"], "line 2: not a row of image file, label"),
        (['case (0).png,"1'], r"labels\.csv, line 1: .*; correct the quotes"),
        ([f"case ({i}).png," for i in range(6)], "no image has a label"),
        (
            [f"case ({i}).png,{'' if i == 3 else 1}" for i in range(6)],
            r"case \(3\)\.png: no label; give it one",
        ),
    ],
)
def test_bad_labels(root: Path, rows: list[str], message: str) -> None:
    lines(root / "classification" / "BUSI" / "labels.csv", *rows)
    with pytest.raises(DataError, match=message):
        load_cases(root, task="classify")
