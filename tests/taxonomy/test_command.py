"""``fastht taxonomy tag``: columns of tags, and what it refuses."""

import csv
import json
from pathlib import Path

import pytest

from fastht.cli import main
from fastht.taxonomy import load_taxonomy

CAPTIONS = [
    "A cyst in the left kidney, possibly with calcification.",
    "No solid component; round, oval cysts in liver and spleen.",
    "A cyst on the left. No cyst on the right.",
    "",
]


def table(folder: Path, column: str = "title", more: str = "") -> Path:
    path = folder / "table.csv"
    lines = [f"filepath,{column}{more}"]
    lines += [f'{i}.png,"{caption}"' for i, caption in enumerate(CAPTIONS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_the_columns_hold_what_the_captions_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, spans = tmp_path / "deep" / "out.csv", tmp_path / "spans.jsonl"
    assert main(["taxonomy", "tag", str(table(tmp_path)), "--out", str(out)]) == 0
    found = rows(out)
    assert [row["title"] for row in found] == CAPTIONS
    assert [row["Diagnosis"] for row in found] == ["cyst", "cyst", "cyst", ""]
    assert [row["Organ_level"] for row in found] == ["Kidney and ureter", "Liver;Spleen", "", ""]
    assert found[0]["Body_system_level"] == "Urinary Tract and male reproductive system"
    assert found[0]["InternalCharacteristics"] == "calcifications"
    assert found[0]["InternalCharacteristics_uncertain"] == "calcifications"
    assert found[1]["InternalCharacteristics"] == ""
    assert found[1]["InternalCharacteristics_absent"] == "solid components"
    assert found[1]["Shape"] == "round;oval"
    assert found[2]["Diagnosis_absent"] == ""
    fields = {dimension.field for dimension in load_taxonomy().dimensions.values()}
    expected = {f + suffix for f in fields for suffix in ("", "_absent", "_uncertain")}
    assert found[0].keys() == expected | {"filepath", "title"}
    told = capsys.readouterr().out
    assert "4 rows, 1 without a caption, 1 without any tag" in told
    diagnosis = next(line for line in told.splitlines() if line.startswith("Diagnosis"))
    assert diagnosis.split()[1:] == ["3", "(75.0", "%)", "0", "0", "1"]
    # The file is not replaced unasked; with spans every hit is told with its place.
    again = ["taxonomy", "tag", str(table(tmp_path)), "--out", str(out), "--spans", str(spans)]
    assert main(again) == 1
    assert not spans.exists()
    assert main([*again, "--overwrite"]) == 0
    head, *lines = map(json.loads, spans.read_text().splitlines())
    assert head == {"taxonomy": "us365k@1", "sha256": load_taxonomy().digest}
    assert [line["line"] for line in lines] == [2, 3, 4, 5]
    hit = next(hit for hit in lines[0]["hits"] if hit["value"] == "calcifications")
    assert CAPTIONS[0][hit["start"] : hit["end"]] == "calcification"
    assert (hit["uncertain"], hit["cues"]) == (True, ["possibly"])


def test_other_columns_separators_and_taxonomies(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: us365k\nname: own\ndimensions: {Side: {values: {left: {}}}}\n")
    command = ["taxonomy", "tag", str(table(tmp_path, "text")), "--caption-key", "text"]
    out = tmp_path / "out.tsv"
    assert main([*command, "--out", str(out), "--taxonomy", str(own)]) == 0
    assert [row["Side"] for row in rows(out, "\t")] == ["left", "", "left", ""]


@pytest.mark.parametrize(
    ("options", "column", "more", "message"),
    [
        ([], "text", "", "--caption-key"),
        (["--caption-key", "words"], "title", "", "no column words"),
        ([], "title", ",,", "columns without a name"),
        ([], "title", ",Shape_absent", "has Shape_absent already"),
        (["--taxonomy", "none"], "title", "", "shipped one (birads, tirads, us365k)"),
        (["--out", "table.csv", "--overwrite"], "title", "", "is the table that is read"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    column: str,
    more: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = table(tmp_path, column, more).read_bytes()
    assert main(["taxonomy", "tag", "table.csv", "--out", "out.csv", *options]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert (tmp_path / "table.csv").read_bytes() == before
