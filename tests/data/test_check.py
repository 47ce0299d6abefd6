"""``fastht data check``: every problem at once, the summary, the exit status."""

import shutil
from pathlib import Path

import miniature_sets
import numpy as np
import pytest
from dicom_files import write_dicom
from miniature_sets import blob, draw, lines, picture
from PIL import Image

from fastht.data import CaseSet, load_cases
from fastht.data.check import CheckArguments, check, inspect_cases


def run(capsys: pytest.CaptureFixture[str], data: Path | str, **options: object) -> tuple[int, str]:
    status = check(CheckArguments(data=str(data), **options))
    return status, capsys.readouterr().out


@pytest.mark.parametrize(
    "layout", ["published", "busi", "ddti", "tn3k", "prostate", "table", "folder"]
)
def test_sound_sets(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(miniature_sets, layout)(tmp_path)
    data = tmp_path / "table.csv" if layout == "table" else tmp_path
    options = {"name": "BUSI"} if layout == "published" else {}
    status, text = run(capsys, data, **options)
    assert "no problems" in text
    assert status == 0
    assert f"(layout {layout})" in text
    assert "image sizes: 14 x 10" in text
    assert "foreground: " in text


def test_many_problems_are_listed_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    miniature_sets.published(tmp_path)
    (tmp_path / "all/images/case (0).png").write_bytes(b"broken")
    draw(tmp_path / "all/masks/case (1).png", np.ones((3, 3), np.uint8))
    draw(tmp_path / "all/masks/case (2).png", blob(1, 1), foreground=7)
    (tmp_path / "all/masks/case (3).png").unlink()
    shutil.copy(tmp_path / "all/images/case (1).png", tmp_path / "all/images/case (4).png")
    lists = tmp_path / "segmentation/BUSI"
    lines(lists / "test.txt", "case (4).png", "case (5).png", "case (2).png", "gone.png")
    lines(lists / "val.txt", "case (3).png")
    status, text = run(capsys, tmp_path, name="BUSI")
    assert status == 1
    assert "7 problems:" in text
    for problem in (
        "case (0).png: not an image",
        "case (1).png: the mask has 3 x 3 pixels",
        "case (2).png: the mask's values are 0 to 7",
        "no mask for case (3).png",
        "the same pixels as",
        "gone.png is not in",
        "case (2).png: in train and in test",
    ):
        assert problem in text, problem


def test_unusable_data_is_one_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, tmp_path / "nowhere")
    assert status == 1
    assert "1 problem:\n" in text
    assert "nowhere: no such file or folder" in text


def test_summary_counts_classes_by_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    miniature_sets.published(tmp_path)
    status, text = run(capsys, tmp_path, task="classify")
    assert status == 0
    rows = [line.split() for line in text.splitlines()[1:4]]
    assert rows == [["train", "val", "test"], ["0", "2", "0", "1"], ["1", "1", "1", "1"]]
    assert "foreground" not in text


def copies(tmp_path: Path, *rows: str) -> CaseSet:
    """A table of two equal images in different formats and one other."""
    for i in range(3):
        picture(tmp_path / f"{i}.png", seed=i // 2)
    (tmp_path / "1.png").unlink()
    picture(tmp_path / "1.bmp", seed=0)
    names = ("0.png", "1.bmp", "2.png")
    body = (f"{name},{row}" for name, row in zip(names, rows, strict=True))
    lines(tmp_path / "t.csv", "filepath,label,patient,split", *body)
    return load_cases(tmp_path / "t.csv", task="classify")


def test_copies_across_splits_are_a_problem(tmp_path: Path) -> None:
    found = inspect_cases(copies(tmp_path, "a,p,train", "a,q,test", "a,r,test"), "classify")
    assert found.problems == [
        f"{tmp_path}/1.bmp: the same pixels as {tmp_path}/0.png, that one in train, this in test; "
        "remove one of the two"
    ]


def test_copies_of_different_label_are_a_problem(tmp_path: Path) -> None:
    found = inspect_cases(copies(tmp_path, "a,p,", "b,q,", "a,r,"), "classify")
    assert found.problems == [
        f"{tmp_path}/1.bmp: the same pixels as {tmp_path}/0.png, that one labelled a, this b; "
        "correct one or remove both"
    ]


def test_other_copies_are_noted(tmp_path: Path) -> None:
    found = inspect_cases(copies(tmp_path, "a,p,", "a,q,", "a,r,"), "classify")
    assert found.problems == []
    assert found.notes == ["1 copies: 1 of 0"]


def test_patients_in_several_splits_are_noted(tmp_path: Path) -> None:
    found = inspect_cases(copies(tmp_path, "a,p,train", "a,p,train", "a,p,test"), "classify")
    assert found.problems == []
    assert "1 patients in several splits: p" in found.notes


def test_empty_masks_and_flat_images_are_noted(tmp_path: Path) -> None:
    miniature_sets.folder(tmp_path)
    draw(tmp_path / "masks" / "0.png", blob(0, 0, 0, 0))
    for name in ("1.png", "2.png"):
        draw(tmp_path / "images" / name, blob(0, 0, 0, 0))
    found = inspect_cases(load_cases(tmp_path), "segment")
    assert found.problems == []
    assert found.notes == ["1 empty mask: 0", "2 images of a single colour: 1, 2"]


def test_many_sizes_are_summed_up(tmp_path: Path) -> None:
    for i in range(5):
        draw(tmp_path / "images" / f"{i}.png", np.eye(i + 3, dtype=np.uint8))
        draw(tmp_path / "masks" / f"{i}.png", np.eye(i + 3, dtype=np.uint8))
    found = inspect_cases(load_cases(tmp_path), "segment")
    assert any(line.endswith("and 2 other sizes") for line in found.summary)


def test_sample(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, "sample")
    assert status == 0
    assert "320 cases from sample" in text


def test_the_spacing_of_pixels_is_told_and_contradictions_are_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = np.arange(140, dtype=np.uint8).reshape(10, 14)
    spacings = {"a": [0.2, 0.05], "b": None, "c": [0.1, 0.1]}
    (tmp_path / "images").mkdir()
    for i, (name, spacing) in enumerate(spacings.items()):
        write_dicom(tmp_path / f"images/{name}.dcm", stored + np.uint8(i), PixelSpacing=spacing)
        draw(tmp_path / f"masks/{name}.png", blob(i, i))
    status, text = run(capsys, tmp_path)
    assert status == 0
    assert "pixel spacing: known of 2 of 3 images, from 0.05 to 0.2 mm" in text
    write_dicom(tmp_path / "images/b.dcm", stored, PixelSpacing=[0.1, -0.1])
    status, text = run(capsys, tmp_path)
    assert status == 1
    assert "b.dcm: Pixel Spacing is [0.1, -0.1], no two lengths above 0" in text


def test_one_of_each_fault_is_listed_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(8):
        picture(tmp_path / "Images" / f"{i}.png", seed=i)
        draw(tmp_path / "Masks" / f"{i}.png", blob(i, 1))
    images, masks = tmp_path / "Images", tmp_path / "Masks"
    (images / "0.png").write_bytes(b"broken")
    several = np.zeros((10, 14), np.uint8)
    several[1:5, 1:5], several[5:9, 7:11] = 1, 2
    draw(masks / "1.png", several, 120)
    (masks / "2.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(images / "3.png") as image:
        image.save(images / "3.jpg", exif=exif)
    (images / "3.png").unlink()
    pages = [Image.fromarray(blob(i, i)) for i in range(3)]
    (images / "4.png").unlink()
    pages[0].save(images / "4.tif", save_all=True, append_images=pages[1:])
    large = np.zeros((800, 1000), np.uint8)
    large[405:408, 503:506] = 1
    Image.fromarray(large * np.uint8(9)).save(images / "5.png")
    draw(masks / "5.png", large)
    draw(masks / "gone.png", blob(1, 1))
    (images / "a.svg").write_bytes(b"<svg/>")
    picture(images / ".hidden.png")
    lines(tmp_path / "labels.csv", "file,label,patient", "6.png,x,p1", "nowhere.png,x,p2")
    status, text = run(capsys, tmp_path, image_size=112)
    assert status == 1
    for part in (
        "1 hidden file",
        "1 .svg file",
        "1 mask without image",
        "1 image that no list, label or layout names",  # the one without mask
        "4 files of the folder not read: ",
        "1 image turned by EXIF beside masks: ",
        "3.jpg; look whether the masks are turned too",
        "1 file of several pictures",
        "4.tif (3); name one by a column frame",
        "1 image with lesions that fall between the pixels at 112 x 112: 5; they are kept",
        "1 row of ",
        "labels.csv without image: nowhere.png",
        "6 images without patient",
        "3 problems:",
        "2.png: no mask",
        "0.png: not an image that can be read",
        "1.png: the mask has regions of several values (240, 120); write the foreground",
    ):
        assert part in text, part
