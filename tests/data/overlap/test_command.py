"""``fastht data overlap``: what is told, left and returned."""

import csv
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import more_sets
import pytest
from PIL import Image

from fastht.cli import main

SAMPLE = Path(str(resources.files("fastht.data"))) / "sample" / "images"


def place(folder: Path, names: Sequence[tuple[str, int]]) -> None:
    """Images of the sample under names of one's own."""
    for name, number in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SAMPLE / f"{number:04d}.jpg", folder / name)


def table(folder: Path, rows: Sequence[tuple[str, int, str, str]]) -> str:
    """A table of images of the sample: file, which one, patient, split."""
    place(folder, [row[:2] for row in rows])
    path = folder / "table.csv"
    text = "".join(f"{name},{patient},{split}\n" for name, _, patient, split in rows)
    path.write_text(f"filepath,patient,split\n{text}")
    return str(path)


def pairs(out: Path) -> list[dict[str, str]]:
    with open(out / "pairs.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_sets_that_share_images_and_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = table(tmp_path / "a", [(f"{n}.jpg", n, f"p{n}", "") for n in (1, 11, 21)])
    second = table(tmp_path / "b", [("x.jpg", 11, "q", ""), ("y.jpg", 31, "p21", "")])
    with Image.open(SAMPLE / "0001.jpg") as image:
        image.resize((200, 150)).save(tmp_path / "b" / "z.png")
    Path(second).write_text(Path(second).read_text() + "z.png,r,\n")
    out = tmp_path / "out"
    assert main(["data", "overlap", first, second, "--out", str(out)]) == 1
    text = capsys.readouterr().out
    assert f"{first}: nothing shared" in text
    assert f"{first} | {second}: 1 same bytes, 1 near duplicates, 1 patients in both" in text
    assert "patients: p21" in text
    assert "\n3 shared" in text
    found = {
        (Path(p["first_image"]).name, Path(p["second_image"]).name, p["kind"]) for p in pairs(out)
    }
    assert found == {("11.jpg", "x.jpg", "bytes"), ("1.jpg", "z.png", "near")}
    with Image.open(out / "pairs.png") as picture:
        assert picture.width > 500


def test_nothing_shared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path / "a", [("deep/1.jpg", 1), ("3.jpg", 3)])
    place(tmp_path / "b", [("1.jpg", 5), ("3.jpg", 7)])
    sets = [f"images:{tmp_path / 'a'}", f"images:{tmp_path / 'b'}"]
    out = tmp_path / "out"
    assert main(["data", "overlap", *sets, "--out", str(out)]) == 0
    assert "nothing shared; all pairs" in capsys.readouterr().out
    assert pairs(out) == []
    assert not (out / "pairs.png").exists()


def test_one_set_across_its_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        ("a.jpg", 1, "p1", "train"),
        ("b.jpg", 1, "p2", "test"),
        ("c.jpg", 3, "p3", "train"),
        ("d.jpg", 3, "p4", "train"),
        ("e.jpg", 5, "p3", "val"),
    ]
    out = tmp_path / "out"
    assert main(["data", "overlap", table(tmp_path / "a", rows), "--out", str(out)]) == 1
    text = capsys.readouterr().out
    assert "across its splits: 1 same bytes, 1 patients in several splits" in text
    assert "patients: p3" in text
    assert "note: 1 copies on one side, which leak nothing" in text
    assert [p["counts"] for p in pairs(out)] == ["yes", "no, one side"]


def test_without_splits_copies_count_unless_they_are_of_one_patient(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "out")]
    same = table(tmp_path / "a", [("a.jpg", 1, "p1", ""), ("b.jpg", 1, "p1", "")])
    assert main(["data", "overlap", same, *arguments]) == 0
    other = table(tmp_path / "b", [("a.jpg", 1, "p1", ""), ("b.jpg", 1, "p2", "")])
    assert main(["data", "overlap", other, *arguments]) == 1


def test_sets_of_two_layouts_number_patients_each_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more_sets.bus_bra(tmp_path / "a")
    rows = table(tmp_path / "b", [("x.jpg", 9, "1", "")])
    main(["data", "overlap", str(tmp_path / "a"), rows, "--out", str(tmp_path / "out")])
    assert "patients" not in capsys.readouterr().out.partition("nothing shared")[2]


def test_what_cannot_be_compared_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place(tmp_path / "a", [("1.jpg", 1)])
    (tmp_path / "a" / "bad.png").write_bytes(b"nothing")
    out = ["--out", str(tmp_path / "out")]
    assert main(["data", "overlap", f"images:{tmp_path / 'a'}", *out]) == 0
    text = capsys.readouterr().out
    assert "cannot be compared" in text
    assert "1 images could not be read and were compared with nothing." in text
    assert main(["data", "overlap", "sample", "sample", *out]) == 1
    assert "a data set is named twice" in capsys.readouterr().err
