"""Images that keep their shape in a letterbox, and runs of before there were any."""

import csv
import dataclasses
import json

import pytest
import torch
from PIL import Image
from run_files import read, rows_of

pytest.importorskip("monai")
pytest.importorskip("torchmetrics")

from fastht.cli import main
from fastht.tasks.images.commands import train
from fastht.tasks.images.evaluate import EvalArguments, evaluate
from fastht.tasks.training.state import ResumeError


@pytest.fixture
def arguments(arguments):
    return dataclasses.replace(arguments, trainer=dataclasses.replace(arguments.trainer, epochs=1))


LATER = ("resize", "tolerance_px", "tolerance_mm")


def test_runs_of_before_there_were_letterboxes_are_squashed(arguments, tmp_path):
    train("segment", arguments)
    folder = arguments.out / "ht" / "seed-0"
    description = read(folder / "run.json")
    for option in LATER:
        del description["options"][option]
    (folder / "run.json").write_text(json.dumps(description))
    signature = torch.load(folder / "state.pt", weights_only=True)["signature"]
    assert not signature.keys() & {*LATER}  # as the trainer wrote it then
    assert evaluate("segment", EvalArguments(run=folder, out=tmp_path / "own")) == 0
    after = read(folder / "results.json")["after"]
    assert read(tmp_path / "own" / "results.json")["after"] == after
    assert train("segment", dataclasses.replace(arguments, resume=True)) == 0
    for change in ({"resize": "letterbox"}, {"tolerance_px": 3.0}):
        other = dataclasses.replace(arguments, resume=True, **change)
        with pytest.raises(ResumeError, match=rf"other settings \({next(iter(change))}\)"):
            train("segment", other)


@pytest.fixture
def wide_table(table, tmp_path):
    """The same table with the upper half of each image: 160 x 80 pixels."""
    rows = rows_of(table)
    for row in rows:
        for column in ("filepath", "mask"):
            with Image.open(row[column]) as picture:
                cut = picture.crop((0, 40, 160, 120))
            row[column] = str(tmp_path / f"{column}-{row[column].rpartition('/')[2]}")
            cut.save(row[column])
    with (tmp_path / "wide.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "wide.csv"


def test_letterboxed_runs_keep_it_and_are_told_apart(arguments, wide_table, tmp_path, capsys):
    chosen = dataclasses.replace(arguments, data=str(wide_table), resize="letterbox")
    assert train("segment", chosen) == 0
    folder = arguments.out / "ht" / "seed-0"
    for picture in (folder / "masks").iterdir():
        with Image.open(picture) as mask:
            assert mask.size == (160, 80)
    assert read(folder / "run.json")["options"]["resize"] == "letterbox"
    after = read(folder / "results.json")["after"]
    assert read(folder / "results.json")["resize"] == "letterbox"
    assert evaluate("segment", EvalArguments(run=folder, out=tmp_path / "own")) == 0
    assert read(tmp_path / "own" / "results.json")["after"] == after
    squash = EvalArguments(
        run=folder, out=tmp_path / "squash", resize="squash", tolerance_px=0.5, tolerance_mm=2
    )
    assert evaluate("segment", squash) == 0
    squashed = read(tmp_path / "squash" / "results.json")
    areas = [
        sum(int(row["true_pixels"]) for row in rows_of(tmp_path / name / "predictions.csv"))
        for name in ("own", "squash")
    ]
    assert areas[1] / areas[0] == pytest.approx(2, rel=0.05)  # the letterbox is half empty
    assert "resize" not in squashed
    assert "nsd_native@0.5px" in squashed["after"]
    capsys.readouterr()
    assert main(["report", str(tmp_path / "own"), str(tmp_path / "squash")]) == 0
    printed = capsys.readouterr().out
    assert "letterbox" in printed
    assert "NSD native@0.5px (%)" in printed


def test_classification_takes_letterboxes(arguments, wide_table):
    chosen = dataclasses.replace(arguments, data=str(wide_table), resize="letterbox")
    assert train("classify", chosen) == 0
    squash = dataclasses.replace(chosen, resize="squash", out=arguments.out.with_name("squash"))
    assert train("classify", squash) == 0
    losses = [
        rows_of(out / "ht" / "seed-0" / "history.csv")[0]["train_loss"]
        for out in (chosen.out, squash.out)
    ]
    assert losses[0] != losses[1]


def test_bad_ways_to_resize_are_refused(arguments):
    with pytest.raises(ValueError, match="resize is 'crop'; choose of squash, letterbox"):
        dataclasses.replace(arguments, resize="crop")
    with pytest.raises(ValueError, match="tolerance_px is -1"):
        dataclasses.replace(arguments, tolerance_px=-1)
