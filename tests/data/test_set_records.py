"""Pairs of folders, JSON and Parquet files are read by the options and told of as tables are."""

import json
import shutil
from pathlib import Path

import more_sets
import pytest
from PIL import Image

from fastht.data import DataError, load_cases, load_records, split_records
from fastht.data.notes import count_notes
from fastht.data.records import Record, RecordSet, note_patients
from fastht.data.signature import describe_changes, record_entries


def rows(root: Path, *more: dict[str, object]) -> Path:
    """JSON Lines of four images, two of which are of one patient."""
    found = [
        {
            "image": f"{i}.png",
            "caption": f"A view of cyst number {i}.",
            "who": i // 2,
            "kind": "cyst",
        }
        for i in range(4)
    ]
    for i in range(4):
        root.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 10, 10)).save(root / f"{i}.png")
    text = "\n".join(json.dumps(row) for row in [*found, *more])
    (root / "rows.jsonl").write_text(text, encoding="utf-8")
    return root / "rows.jsonl"


def test_keys_and_cleaning_are_those_of_tables(tmp_path: Path) -> None:
    odd = {"image": "0.png", "caption": "Eine zystische Läsion, rechts", "who": "0"}
    path = rows(tmp_path, odd)
    found = load_records(path, label_key="kind", patient_key="who")
    assert [record.patient for record in found] == ["0", "0", "1", "1", "0"]
    assert [record.label for record in found] == ["cyst"] * 4 + [None]
    assert found.records[-1].caption == "Eine zystische Läsion, rechts"
    paper = load_records(path, patient_key="who", cleaning="paper")
    assert paper.records[-1].caption == "Eine zystische Lsion, rechts"
    assert count_notes(paper.notes)["captions_lost_letters"] == 1
    with pytest.raises(DataError, match=r"0\.png is of 0 and nobody, by its rows"):
        load_records(rows(tmp_path, odd | {"who": None}), patient_key="who")


def test_fields_of_tags_are_kept(tmp_path: Path) -> None:
    odd = {"image": "0.png", "caption": "A caption of the first.", "Shape": ["oval", "round"]}
    path = rows(tmp_path, odd)
    found = load_records(path, attribute_keys=["Shape", "Margins"])
    assert [record.attributes for record in found] == [{}] * 4 + [{"Shape": "oval;round"}]
    assert not any(record.attributes for record in load_records(path))


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = rows(tmp_path)
    with pytest.raises(DataError, match="frame_key is for layout table, not for json"):
        load_records(path, frame_key="frame")
    with pytest.raises(DataError, match="separator is for layout table, not for json"):
        load_records(path, separator=";")
    with pytest.raises(DataError, match="no row has nobody; correct --patient-key"):
        load_records(path, patient_key="nobody")


def test_fields_that_are_not_read_are_told(tmp_path: Path) -> None:
    path = rows(tmp_path, {"image": "0.png", "caption": "A patient by name.", "patient_id": 3})
    (tmp_path / "notes.docx").write_bytes(b"of no layout")
    for found in (load_cases(path, task="pairs"), load_records(path)):
        (note,) = [note for note in found.notes if note.kind == "columns_not_read"]
        assert note.count == 3
        assert "who, kind, patient_id" in note.text
        assert "patient_id looks like the patient's" in note.text
        assert "by --patient-key patient_id" in note.text
    read = load_records(path, patient_key="who", label_key="kind")
    (note,) = [note for note in read.notes if note.kind == "columns_not_read"]
    assert note.count == 1
    assert "looks like" not in note.text


def test_fields_inside_fields_are_read(tmp_path: Path) -> None:
    more_sets.json_rows(tmp_path)
    found = load_records(tmp_path / "rows.json", **more_sets.JSON_KEYS)
    assert not [note for note in found.notes if note.kind == "columns_not_read"]
    assert [record.split for record in found] == ["train", "train", "test"]
    assert [record.patient for record in found] == ["7", "7", "8"]


def test_files_of_a_set_that_are_not_read_are_told(tmp_path: Path) -> None:
    more_sets.rocov2(tmp_path)
    assert load_records(tmp_path).notes == ()
    (tmp_path / "train_images" / "train" / "more.jpg").write_bytes(b"not listed")
    assert count_notes(load_records(tmp_path).notes) == {"files_not_read": 1}


def test_images_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    path = rows(tmp_path, {"image": "gone.png", "caption": "An image that is not there."})
    found = load_records(path)
    assert len(found) == 4
    assert found.dropped == {"unusable": 1}
    (note,) = [note for note in found.notes if note.kind == "unusable"]
    assert "no image gone.png" in note.text


def sides(found: RecordSet) -> tuple[set[str], ...]:
    return tuple({r.name for r in side} for side in split_records(found.records, val_fraction=0.5))


def test_a_set_may_be_moved_and_its_rows_sorted(tmp_path: Path) -> None:
    first = load_records(rows(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    lines = (tmp_path / "b" / "rows.jsonl").read_text().splitlines()
    (tmp_path / "b" / "rows.jsonl").write_text("\n".join(reversed(lines)))
    second = load_records(tmp_path / "b" / "rows.jsonl")
    assert [record.name for record in first] == ["0.png", "1.png", "2.png", "3.png"]
    assert sides(first) == sides(second)
    before, now = (record_entries({"train": found.records}) for found in (first, second))
    assert describe_changes(before, now) == ""


def test_captions_of_one_image_stay_on_one_side(tmp_path: Path) -> None:
    again = [{"image": f"{i}.png", "caption": f"Another caption of {i}."} for i in range(4)]
    found = load_records(rows(tmp_path, *again))
    assert len(found) == 8
    for seed in range(8):
        train, val = split_records(found.records, val_fraction=0.5, seed=seed)
        assert not {r.image for r in train} & {r.image for r in val}


def test_cells_of_parquet_are_signed(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    more_sets.parquet_rows(tmp_path)
    found = load_records(tmp_path)
    assert found.records[0].name.startswith("data/")
    entries = record_entries({"train": found.records})
    assert len({entry.content for entry in entries}) == len(found)
    changed = [entries[0], *entries[2:]]
    assert describe_changes(entries, changed).startswith("1 image is gone")


@pytest.mark.parametrize("column", ["split", "part"])
def test_tables_name_their_column_of_the_split(tmp_path: Path, column: str) -> None:
    rows(tmp_path)
    lines = [f"filepath,title,label,{column}"]
    lines += [
        f"{i}.png,A view of cyst number {i}.,cyst,{'train' if i else 'val'}" for i in range(4)
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    key = None if column == "split" else column
    read = load_records(tmp_path / "t.csv", split_key=key)
    assert [record.split for record in read] == ["val", "train", "train", "train"]
    assert read.notes == ()
    cases = load_cases(tmp_path / "t.csv", task="classify", split_key=key)
    assert [case.split for case in cases] == ["val", "train", "train", "train"]
    with pytest.raises(DataError, match="no column 'side'; the columns are filepath"):
        load_records(tmp_path / "t.csv", split_key="side")


def test_patients_on_both_sides_of_a_stated_split_are_told() -> None:
    train = [Record(f"{i}.png", "A caption.", patient=f"p{i}") for i in range(3)]
    val = [Record("9.png", "A caption.", patient="p2"), Record("8.png", "A caption.")]
    (note,) = note_patients(train, val)
    assert (note.kind, note.count) == ("patients_on_several_sides", 1)
    assert "1 patient trained on and held out: p2; scores will be too good" in note.text
    assert note_patients(train[:2], val) == ()
