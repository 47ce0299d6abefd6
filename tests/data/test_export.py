"""``fastht data export``: every set as a table that reads as the set itself."""

import csv
from pathlib import Path

import miniature_sets
import more_sets
import numpy as np
import pytest

from fastht.cli import main
from fastht.data import load_cases, load_records, read_case_image, read_mask

SETS = [
    ("busi", "segment", []),
    ("ddti", "segment", []),
    ("aul", "segment", []),
    ("bus_bra", "segment", ["--fold", "1"]),
    ("bus_cot", "classify", ["--exclude-origin", "BUSI"]),
    ("tn5000", "classify", []),
    ("auitd", "classify", []),
    ("parquet_rows", "classify", []),
]


@pytest.mark.parametrize(("maker", "task", "options"), SETS)
def test_the_table_reads_as_the_set(
    tmp_path: Path, maker: str, task: str, options: list[str]
) -> None:
    if maker == "parquet_rows":
        pytest.importorskip("pyarrow")
    module = miniature_sets if hasattr(miniature_sets, maker) else more_sets
    getattr(module, maker)(tmp_path / "set")
    out = tmp_path / "deep" / "out"
    command = ["data", "export", "--data", str(tmp_path / "set"), "--task", task, *options]
    assert main([*command, "--out", str(out)]) == 0
    given = {"fold": 1} if "--fold" in options else {}
    given |= {"exclude_origin": ("BUSI",)} if "--exclude-origin" in options else {}
    expected = load_cases(tmp_path / "set", task=task, **given)
    found = load_cases(out / "table.csv", task=task)
    assert len(found) == len(expected) > 1
    for case, original in zip(found, expected, strict=True):
        for name in ("label", "patient", "split", "caption"):
            assert getattr(case, name) == getattr(original, name), name
        assert read_case_image(case).tobytes() == read_case_image(original).tobytes()
        if task == "segment":
            np.testing.assert_array_equal(read_mask(case), read_mask(original))


def test_captions_and_masks_are_written_where_there_are_any(tmp_path: Path) -> None:
    more_sets.reports(tmp_path / "set")
    arguments = ["--data", str(tmp_path / "set"), "--caption-key", "finding_en"]
    assert main(["data", "export", *arguments, "--out", str(tmp_path / "out")]) == 0
    records = load_records(tmp_path / "out" / "table.csv")
    assert {r.caption for r in records} == {
        f"The liver is of normal size, report {i}." for i in range(3)
    }
    assert {r.patient for r in records} == {"0", "1", "2"}
    miniature_sets.busi(tmp_path / "busi")
    assert (
        main(["data", "export", "--data", str(tmp_path / "busi"), "--out", str(tmp_path / "b")])
        == 0
    )
    with open(tmp_path / "b" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["mask"] and row["label"] for row in rows)
    assert "patient" not in rows[0]  # an empty column would say that there is something


def test_what_cannot_be_used_is_told_and_nothing_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more_sets.bus_bra(tmp_path / "set")
    (tmp_path / "set" / "Images" / "bus_0002-l.png").unlink()
    command = ["data", "export", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    text = capsys.readouterr().out
    assert "4 rows" in text
    assert "1 images left out:" in text
    assert "no image" in text
    assert main(command) == 1
    assert "table.csv is there already; give another --out" in capsys.readouterr().err
