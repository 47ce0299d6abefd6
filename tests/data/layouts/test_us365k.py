"""US-365K in miniature: every place of images, every form of fields, and each kind of damage."""

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import more_sets
import pytest
from miniature_sets import lines

from fastht.cli import main
from fastht.data import DataError, load_cases, load_records, read_case_image
from fastht.data.archives import read_zipped
from fastht.data.dataset import ImageTextDataset
from fastht.data.layouts import scan_cases
from fastht.data.layouts.us365k import FIELDS
from fastht.taxonomy import load_taxonomy


def make(root: Path, place: str = "images", change: Callable[..., None] | None = None) -> Path:
    sides, records = more_sets.us365k_rows()
    if change is not None:
        change(sides, records)
    more_sets.write_us365k(root, sides, records, place)
    return root


def test_the_fields_are_those_of_the_taxonomy() -> None:
    assert [d.field for d in load_taxonomy().dimensions.values()] == list(FIELDS)


@pytest.mark.parametrize("place", ["images", ".", "zip"])
def test_images_tags_cases_and_splits(tmp_path: Path, place: str) -> None:
    found = load_cases(make(tmp_path, place), task="pairs")
    assert found.layout == "us365k"
    assert [case.split for case in found] == ["train", "train", "train", "val", "test"]
    assert [case.patient for case in found] == ["100", "100", "101", "103", "104"]
    first, second, third, mass, spleen = found
    assert dict(first.tags) == {
        "Diagnosis": ("nodule",),
        "Body_system_level": ("Head and Neck",),
        "Organ_level": ("Thyroid gland",),
        "Shape": ("round",),
        "Echogenicity": ("hypoechoic",),
    }
    assert dict(second.tags)["Diagnosis"] == ("nodule",)  # a text, and no suffix in media_name
    assert dict(third.tags)["PosteriorAcoustics"] == ("enhancement",)
    assert "Shape" not in dict(mass.tags)
    assert "Vascularity" not in dict(spleen.tags)
    assert first.groups == (("case_id", ("100",)),)
    pixels = {read_case_image(case).tobytes() for case in found}
    assert len(pixels) == len(found)
    kinds = {note.kind: note.count for note in found.notes}
    assert kinds["refusals"] == 1
    assert kinds["patients_by_case"] == 6
    assert found.left_out == {"caption that refuses to describe": 1}
    assert ("images.zip::" in first.image) == (place == "zip")


def test_refusals_stay_where_they_are_asked_for_and_for_pairs_are_left_out(tmp_path: Path) -> None:
    make(tmp_path)
    assert len(load_cases(tmp_path, task="image", refusals="keep")) == 6
    records = load_records(tmp_path)
    assert len(records) == 5
    assert records.dropped == {"caption that refuses to describe": 1}


def test_pairs_keep_the_tags_that_training_takes(tmp_path: Path) -> None:
    make(tmp_path)
    taxonomy = load_taxonomy()
    fields = [dimension.field for dimension in taxonomy.dimensions.values()]
    records = load_records(tmp_path, attribute_keys=fields)
    cases = load_cases(tmp_path, task="pairs")
    assert [record.attributes for record in records] == [
        {field: ";".join(values) for field, values in case.tags} for case in cases
    ]
    assert records.records[0].attributes["Organ_level"] == "Thyroid gland"
    # Fields of an extension are read beside them; other columns do not take their place.
    more = load_records(tmp_path, attribute_keys=[*fields, "Orientation"])
    assert [r.attributes for r in more] == [r.attributes for r in records]
    one = load_records(tmp_path, attribute_keys=["Shape"])
    assert {*one.records[0].attributes} == {"Shape"}
    other = load_records(tmp_path, attribute_keys=["organ"])
    assert [r.attributes for r in other] == [r.attributes for r in records]


def test_members_of_a_zip_are_records_of_a_dataset(tmp_path: Path) -> None:
    records = load_records(make(tmp_path, "zip"))
    items = ImageTextDataset(records.records, lambda image: image.size)  # type: ignore[arg-type, return-value]
    assert items[0]["image"] == (14, 10)
    with pytest.raises(DataError, match="no such member; was the archive replaced"):
        read_zipped(f"{tmp_path / 'images.zip'}::none.jpg")


def test_without_case_id_the_uuid_stands_and_is_told(tmp_path: Path) -> None:
    def change(sides: Any, records: Any) -> None:
        for record in records:
            record.pop("case_id")

    found = load_cases(make(tmp_path, change=change), task="pairs")
    assert found.cases[0].patient == found.cases[1].patient == more_sets.UUIDS[0]
    (note,) = (note for note in found.notes if note.kind == "patients_guessed")
    assert note.count == 6
    assert "which nothing proves: give case_id" in note.text


def test_patient_id_goes_before_case_id_and_rows_may_have_them(tmp_path: Path) -> None:
    def change(sides: Any, records: Any) -> None:
        sides["train"][0]["patient_id"] = 7

    found = load_cases(make(tmp_path, change=change), task="pairs")
    assert found.cases[0].patient == "7"
    assert found.cases[0].groups == (("patient_id", ("7",)), ("case_id", ("100",)))


def test_full_data_alone_has_captions_and_no_split(tmp_path: Path) -> None:
    def change(sides: Any, records: Any) -> None:
        rows = [row for rows in sides.values() for row in rows]
        for record, row in zip(records, rows, strict=True):
            record["caption"] = row["caption"]

    make(tmp_path, change=change)
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    found = load_cases(tmp_path, task="pairs")
    assert len(found) == 5
    assert {case.split for case in found} == {None}
    assert found.cases[0].tags


def test_rows_without_record_and_records_without_row_are_counted(tmp_path: Path) -> None:
    def change(sides: Any, records: Any) -> None:
        records[0]["media_name"] = "other.jpg"
        records[4] = {"media_name": records[4]["media_name"], "case_id": 1, "note": "x"}

    found = load_cases(make(tmp_path, change=change), task="pairs")
    kinds = {note.kind: note for note in found.notes}
    assert kinds["without_record"].count == kinds["records_not_named"].count == 1
    assert kinds["without_tags"].count == 1
    assert "other" in kinds["records_not_named"].text
    assert kinds["columns_not_read"].text.endswith("not read: note")


DAMAGES: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    "tags": (lambda s, r: r[0].update(Shape={"a": 1}), "Shape: {'a': 1} is neither a text nor"),
    "numbers": (lambda s, r: r[0].update(Shape=[3]), "Shape: [3] is neither a text nor a list"),
    "names": (lambda s, r: r[0].pop("media_name"), "no media_name; give the name of its image"),
    "twice": (lambda s, r: r.append({**r[0], "Shape": "oval"}), "has other tags before; remove"),
    "case": (lambda s, r: s["train"][0].update(case_id=5), "case_id is 5 here and 100 in full"),
    "odd case": (lambda s, r: r[0].update(case_id=[1]), "[1] is neither a text nor a number"),
    "no image": (lambda s, r: s["test"][0].pop("image"), "no image is named; correct the row"),
    "upwards": (lambda s, r: s["test"][0].update(image="../x.jpg"), "names no image; correct it"),
    "caption": (lambda s, r: s["valid"][0].update(caption=3), "caption 3 is no text; correct it"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_gives_one_clear_error(tmp_path: Path, damage: str) -> None:
    sides, records = more_sets.us365k_rows()
    more_sets.write_us365k(tmp_path, sides, records)
    change, message = DAMAGES[damage]
    change(sides, records)
    for side, rows in sides.items():
        lines(tmp_path / f"{side}.jsonl", *(json.dumps(row) for row in rows))
    more_sets.write(tmp_path / "full_data.json", records)
    _, problems = scan_cases(tmp_path, task="pairs")
    assert len(problems) == 1
    assert message in problems[0]


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    make(tmp_path / "a", "zip")
    archive = tmp_path / "a" / "images.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no zip file, or cut off"):
        load_cases(tmp_path / "a", task="pairs")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("other.jpg", b"")
    with pytest.raises(DataError, match=r"no image .* in .*images\.zip; download it again"):
        load_cases(tmp_path / "a", task="pairs")
    make(tmp_path / "b")
    next((tmp_path / "b" / "images").glob("000005*")).unlink()
    _, problems = scan_cases(tmp_path / "b", task="pairs")
    assert [p.partition(": no image ")[0] for p in problems] == [f"{tmp_path}/b/test.jsonl, line 1"]
    for task in ("segment", "classify"):
        with pytest.raises(DataError, match="neither masks nor classes"):
            load_cases(tmp_path / "b", task=task)


def test_export_keeps_tags_and_cases_and_a_table_with_them_is_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path / "set", "zip")
    out = tmp_path / "out"
    assert main(["data", "export", "--data", str(root), "--out", str(out)]) == 0
    assert "1 caption that refuses to describe" in capsys.readouterr().out
    with open(out / "table.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["Echogenicity"] == "hypoechoic"
    assert (rows[0]["case_id"], rows[0]["split"]) == ("100", "train")
    assert (out / rows[0]["filepath"]).is_file()
    again = load_cases(out / "table.csv", task="pairs", tag_keys=FIELDS, group_keys=("case_id",))
    before = load_cases(root, task="pairs")
    assert [(c.tags, c.groups, c.caption) for c in again] == [
        (c.tags, c.groups, c.caption) for c in before
    ]
    with pytest.raises(DataError, match="no column patient_id; the columns are filepath"):
        load_cases(out / "table.csv", task="pairs", group_keys=("patient_id",))
    assert main(["data", "list", "us-365k"]) == 0
    assert "refusals of the language model" in " ".join(capsys.readouterr().out.split())
