"""Tables of cases, and the embedded sample."""

from pathlib import Path

import miniature_sets
import numpy as np
import pytest
from miniature_sets import lines
from PIL import Image

from fastht.data import Case, DataError, load_cases, read_case_image, read_mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    miniature_sets.table(tmp_path)
    return tmp_path


def test_all_columns(root: Path) -> None:
    found = load_cases(root / "table.csv")
    assert found.cases[2] == Case(
        "pictures-2",
        str(root / "pictures/2.png"),
        (str(root / "marks/m2.png"),),
        "class 0",
        "p1",
        "Caption  2",
        "val",
    )
    assert [case.split for case in found] == ["train", "train", "val", "test"]


def test_image_column_alone_and_nextgen_names(root: Path) -> None:
    lines(root / "t.tsv", "filename\tCaption\tlabel", "pictures/1.png\tOne, two\tcyst")
    found = load_cases(root / "t.tsv", task="classify")
    assert found.cases == (
        Case("pictures-1", str(root / "pictures/1.png"), label="cyst", caption="One, two"),
    )


def test_columns_of_other_names(root: Path) -> None:
    lines(root / "t.csv", "Bild;Befund;caption;label", "pictures/1.png;Zyste;not this;cyst")
    found = load_cases(root / "t.csv", task="pairs", image_key="Bild", caption_key="Befund")
    assert (found.cases[0].image, found.cases[0].caption) == (str(root / "pictures/1.png"), "Zyste")
    with pytest.raises(DataError, match="no column Foto; the columns are Bild, Befund"):
        load_cases(root / "t.csv", task="classify", image_key="Foto")


def test_absolute_paths(root: Path) -> None:
    lines(root / "sub" / "t.csv", "filepath,label", f"{root / 'pictures/1.png'},cyst")
    case = load_cases(root / "sub" / "t.csv", task="classify").cases[0]
    assert case.image == str(root / "pictures/1.png")
    assert case.name.endswith("-pictures-1")
    assert not case.name.startswith(("-", "/"))


def test_frames_are_cases_of_one_file(root: Path) -> None:
    pages = [Image.new("L", (4, 4), 10 * i) for i in range(3)]
    pages[0].save(root / "clip.tif", save_all=True, append_images=pages[1:])
    rows = [f"clip.tif,cyst,{frame}" for frame in (0, 2)]
    lines(root / "t.csv", "filepath,label,frame", *rows)
    found = load_cases(root / "t.csv", task="classify")
    assert [case.name for case in found] == ["clip-0", "clip-2"]
    assert [int(np.asarray(read_case_image(case)).max()) for case in found] == [0, 20]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("gone.png,marks/m0.png,a,p,train", r"line 2: no image .*gone\.png; check the path"),
        ("pictures/0.png,gone.png,a,p,train", r"line 2: no mask .*gone\.png; check the path"),
        ("pictures/0.png,,a,p,train", "line 2: no mask; fill the cell or remove the row"),
        (",marks/m0.png,a,p,train", "line 2: no image; fill"),
        ("pictures/0.png,marks/m0.png,a,p,dev", "line 2: split 'dev' is none of train, val"),
    ],
)
def test_bad_rows(root: Path, row: str, message: str) -> None:
    lines(root / "t.csv", "filepath,mask,label,patient,split", row)
    with pytest.raises(DataError, match=message):
        load_cases(root / "t.csv")


def test_bad_tables(root: Path) -> None:
    lines(root / "t.csv", "path,label", "pictures/0.png,a")
    with pytest.raises(
        DataError, match=r"no column filepath or filename or image; .*name .* by --image-key"
    ):
        load_cases(root / "t.csv")
    lines(root / "t.csv", "filepath,label", "pictures/0.png,a")
    with pytest.raises(DataError, match="no column mask; the columns are filepath, label; add it"):
        load_cases(root / "t.csv")
    lines(root / "t.csv", "filepath,label", "pictures/0.png,a", "pictures/0.png,b")
    with pytest.raises(DataError, match=r"0\.png: listed twice"):
        load_cases(root / "t.csv", task="classify")
    lines(root / "t.csv", "filepath,label", 'pictures/0.png,"a')
    with pytest.raises(DataError, match=r"t\.csv, line 2: .*quote"):
        load_cases(root / "t.csv", task="classify")


def test_sample() -> None:
    found = load_cases("sample")
    assert len(found) == 320
    assert found.classes == ("benign mass", "cyst", "malignant mass")
    assert found.source == "sample"
    assert all(case.caption and case.patient and case.split is None for case in found)
    for case in found.cases[::80]:
        mask = read_mask(case)
        assert mask.shape == (160, 160)
        assert 0.01 < mask.mean() < 0.3
    assert load_cases("sample", task="classify").cases[0].masks == ()
