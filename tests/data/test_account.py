"""Every file of a folder is accounted for, and what may surprise is said."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_dicom
from miniature_sets import blob, class_folders, draw, folder, lines, picture, table
from PIL import Image

from fastht.data import CaseSet, DataError, load_cases
from fastht.data.account import note_sides
from fastht.data.notes import count_notes


def classes_of(found: CaseSet) -> dict[str, int]:
    return {label: sum(case.label == label for case in found) for label in found.classes}


# Folders


def test_files_without_suffix_are_read_by_their_content(tmp_path: Path) -> None:
    class_folders(tmp_path)
    stored = np.arange(140, dtype=np.uint8).reshape(10, 14)
    write_dicom(tmp_path / "cyst" / "IM_0001", stored)
    write_dicom(tmp_path / "mass" / "1.2.840.113619.2.5", stored + 1)
    picture(tmp_path / "mass" / "plain.png", seed=9)
    (tmp_path / "mass" / "plain.png").rename(tmp_path / "mass" / "plain")
    (tmp_path / "mass" / "README").write_text("no image")
    found = load_cases(tmp_path, task="classify")
    assert classes_of(found) == {"cyst": 3, "mass": 4}
    assert found.left_out == {"file without suffix": 1}
    names = [case.name for case in found]
    assert "mass-1.2.840.113619.2.5" in names
    assert "cyst-IM_0001" in names


def test_masks_without_suffix_are_found(tmp_path: Path) -> None:
    stored = np.arange(140, dtype=np.uint8).reshape(10, 14)
    (tmp_path / "images").mkdir()
    write_dicom(tmp_path / "images" / "1.2.3", stored)
    draw(tmp_path / "masks" / "1.2.3.png", blob(1, 1))
    assert len(load_cases(tmp_path)) == 1


def test_other_files_are_counted_by_their_kind(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for name in ("cyst/a.svg", "cyst/b.jp2", "mass/c.svg", "notes.docx", "mass/deep/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"anything")
    found = load_cases(tmp_path, task="classify")
    assert len(found) == 4
    assert found.left_out == {
        ".svg file": 2,
        ".jp2 file": 1,
        ".docx file": 1,
        "image that no list, label or layout names": 1,
    }
    assert "left out: 2 .svg file" in found.describe()
    assert count_notes(found.notes) == {"files_not_read": 5}


def test_masks_without_image_are_counted(tmp_path: Path) -> None:
    folder(tmp_path)
    draw(tmp_path / "masks" / "gone.png", blob(1, 1))
    assert load_cases(tmp_path).left_out == {"mask without image": 1}
    of_classes = load_cases(tmp_path, task="classify")  # which needs no mask at all
    assert of_classes.left_out == {}
    assert count_notes(of_classes.notes) == {"masks_not_needed": 5}
    assert of_classes.account() == of_classes.describe()


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", ".Trash-0"])
def test_hidden_folders_are_no_classes(tmp_path: Path, hidden: str) -> None:
    class_folders(tmp_path)
    picture(tmp_path / hidden / "0.png", seed=5)
    picture(tmp_path / "cyst" / "._0.png", seed=6)
    found = load_cases(tmp_path, task="classify")
    assert classes_of(found) == {"cyst": 2, "mass": 2}
    assert found.left_out == {"hidden file": 2}


@pytest.mark.parametrize(("images", "masks"), [("Images", "Masks"), ("IMAGES", "mask")])
def test_folders_of_images_and_masks_in_any_case(tmp_path: Path, images: str, masks: str) -> None:
    for i in range(3):
        picture(tmp_path / images / f"{i}.png", seed=i)
        draw(tmp_path / masks / f"{i}.png", blob(i, 1))
    assert [case.name for case in load_cases(tmp_path)] == ["0", "1", "2"]
    with pytest.raises(DataError, match="no image has a label"):
        load_cases(tmp_path, task="classify")  # and not the classes Images and Masks


@pytest.mark.parametrize("name", ["masks", "Mask", "Labels", "gt"])
def test_folders_of_masks_are_no_classes(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path)
    draw(tmp_path / name / "0.png", blob(1, 1))
    with pytest.raises(DataError, match=rf"{name}: a folder of this name is no class; rename it"):
        load_cases(tmp_path, task="classify")


def test_masks_among_the_images_of_a_class_are_left_out(tmp_path: Path) -> None:
    for label in ("Benign", "Malignant"):
        for i in (1, 2):
            picture(tmp_path / label / f"{i} {label} Image.bmp", seed=i + len(label))
            draw(tmp_path / label / f"{i} {label} Mask.tif", blob(i, i))
            draw(tmp_path / label / f"{i}_seg_1.png", blob(i, i))
    found = load_cases(tmp_path, task="classify")
    assert classes_of(found) == {"Benign": 2, "Malignant": 2}
    assert found.left_out == {"mask among the images of a class": 8}


def test_a_class_of_masks_alone_is_taken_as_it_is(tmp_path: Path) -> None:
    for label in ("breast", "phantom"):
        picture(tmp_path / label / "face mask.png", seed=len(label))
    assert classes_of(load_cases(tmp_path, task="classify")) == {"breast": 1, "phantom": 1}


@pytest.mark.parametrize("other", ["Cyst", "cyst ", "CYST"])
def test_classes_that_differ_in_case_or_spaces_are_refused(tmp_path: Path, other: str) -> None:
    class_folders(tmp_path)
    picture(tmp_path / other / "9.png", seed=9)
    with pytest.raises(DataError, match=r"classes that differ in spelling alone: .* alike"):
        load_cases(tmp_path, task="classify")


def test_patients_of_class_folders_are_read(tmp_path: Path) -> None:
    class_folders(tmp_path)
    lines(tmp_path / "labels.csv", "file,label,patient", "0.png,cyst,p1", "gone.png,cyst,p2")
    found = load_cases(tmp_path, task="classify")
    assert [case.patient for case in found] == ["p1", None, None, None]
    notes = count_notes(found.notes)
    assert notes == {"rows_without_image": 1, "without_patient": 3}


def test_labels_of_european_spreadsheets(tmp_path: Path) -> None:
    folder(tmp_path)
    rows = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text(rows.replace(",", ";"))
    assert {case.patient for case in load_cases(tmp_path)} == {"p0", "p1"}


# Tables


def rewritten(root: Path, **names: str) -> Path:
    """A table whose columns are called otherwise."""
    table(root)
    path = root / "table.csv"
    header, _, body = path.read_text().partition("\n")
    path.write_text(",".join(names.get(name, name) for name in header.split(",")) + "\n" + body)
    return path


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_columns_of_any_name(tmp_path: Path, task: str) -> None:
    path = rewritten(tmp_path, label="finding", patient="case no")
    found = load_cases(path, task=task, label_key="finding", patient_key="case no")
    assert {case.label for case in found} == {"class 0", "class 1"}
    assert {case.patient for case in found} == {"p0", "p1"}
    with pytest.raises(DataError, match="no column 'who'; the columns are filepath, mask, finding"):
        load_cases(path, task=task, patient_key="who")


def test_patients_by_another_name_are_patients(tmp_path: Path) -> None:
    found = load_cases(rewritten(tmp_path, patient="Patient_ID"))
    assert {case.patient for case in found} == {"p0", "p1"}
    assert "note: column Patient_ID is read as the patient's" in found.account()


def test_columns_that_are_not_read_are_told(tmp_path: Path) -> None:
    (note,) = load_cases(rewritten(tmp_path, patient="case", label="diagnosis")).notes
    assert (note.kind, note.count) == ("columns_not_read", 2)
    assert "by --patient-key case" in note.text
    assert "by --label-key diagnosis" in note.text


def test_semicolons_and_their_statement(tmp_path: Path) -> None:
    table(tmp_path)
    path = tmp_path / "table.csv"
    plain = load_cases(path)
    path.write_text("sep=;\n" + path.read_text().replace(",", ";"))
    assert load_cases(path).cases == plain.cases
    path.write_text(path.read_text().removeprefix("sep=;\n").replace(";", "|"))
    with pytest.raises(DataError, match=r"no column filepath .*--separator"):
        load_cases(path)
    assert load_cases(path, separator="|").cases == plain.cases


def test_options_of_tables_are_for_tables(tmp_path: Path) -> None:
    folder(tmp_path)
    with pytest.raises(
        DataError, match="patient_key is for layouts json, parquet and table, not for folder"
    ):
        load_cases(tmp_path, patient_key="patient")


def test_paths_written_on_windows(tmp_path: Path) -> None:
    table(tmp_path)
    path = tmp_path / "table.csv"
    plain = load_cases(path)
    path.write_text(
        path.read_text().replace("pictures/", "pictures\\").replace("marks/", "marks\\")
    )
    assert load_cases(path).cases == plain.cases


# Headers and sides


def test_exif_beside_masks_is_told(tmp_path: Path) -> None:
    folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(tmp_path / "images" / "1.png") as image:
        image.convert("L").save(tmp_path / "images" / "1.jpg", exif=exif)
    (tmp_path / "images" / "1.png").unlink()
    lines(tmp_path / "labels.csv", "file,label")
    (note,) = load_cases(tmp_path).notes
    assert (note.kind, note.count) == ("images_turned_by_exif", 1)
    assert "1.jpg; look whether the masks are turned too" in note.text
    exif[0x0112] = 1  # upright
    with Image.open(tmp_path / "images" / "1.jpg") as image:
        image.save(tmp_path / "images" / "1.jpg", exif=exif)
    assert load_cases(tmp_path).notes == ()


def test_files_of_several_pictures_are_told(tmp_path: Path) -> None:
    folder(tmp_path)
    pages = [Image.new("L", (14, 10), 20 * i) for i in range(3)]
    pages[0].save(tmp_path / "images" / "4.tif", save_all=True, append_images=pages[1:])
    write_dicom(tmp_path / "images" / "5.dcm", np.zeros((4, 10, 14), np.uint8), NumberOfFrames=4)
    pages[0].save(tmp_path / "images" / "6.gif", save_all=True, append_images=pages[1:])
    for i in (4, 5, 6):
        draw(tmp_path / "masks" / f"{i}.png", blob(1, 1))
    note = next(n for n in load_cases(tmp_path).notes if n.kind == "files_of_several_pictures")
    assert note.count == 3
    assert "4.tif (3)" in note.text
    assert "5.dcm (4)" in note.text
    assert "6.gif (3); name one by a column frame" in note.text


@pytest.mark.parametrize("side", ["train", "val", "test"])
def test_classes_that_a_side_lacks_are_told(tmp_path: Path, side: str) -> None:
    rows = []
    for i, (split, label) in enumerate(
        (split, label) for split in ("train", "val", "test") for label in ("cyst", "mass")
    ):
        if (split, label) != (side, "mass"):
            picture(tmp_path / f"{i}.png", seed=i)
            rows.append(f"{i}.png,{label},{split}")
    lines(tmp_path / "t.csv", "filepath,label,split", *rows)
    (note,) = note_sides(load_cases(tmp_path / "t.csv", task="classify"))
    assert (note.kind, note.count) == (f"classes_missing_in_{side}", 1)
    assert note.text.startswith(f"no image of mass in {side}: ")


def test_all_is_well_is_short() -> None:
    found = load_cases("sample")
    assert found.account() == found.describe()
    assert "\n" not in found.account()
