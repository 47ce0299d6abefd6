"""Runs on masks or labels whose data changes: none goes on, none is scored on its training."""

import csv
import dataclasses
import json
import shutil

import pytest
from PIL import Image

pytest.importorskip("monai")
pytest.importorskip("torchmetrics")

from fastht.data import DataError, split_cases
from fastht.tasks.images import experiment
from fastht.tasks.images.commands import train
from fastht.tasks.images.evaluate import EvalArguments, evaluate
from fastht.tasks.images.experiment import ExperimentArguments
from fastht.tasks.models.methods import AdapterSettings
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.state import ResumeError


@pytest.fixture
def own_table(table, tmp_path):
    """A copy of the table, for tests that change it."""
    return shutil.copy(table, tmp_path / "own.csv")


@pytest.fixture
def arguments(own_table, tiny_model, tmp_path):
    return ExperimentArguments(
        data=str(own_table),
        model=tiny_model,
        pretrained="none",
        blocks=(0, 1),
        width=16,
        image_size=32,
        methods=("frozen",),
        settings=AdapterSettings(bottleneck_dim=8, lora_rank=2),
        trainer=TrainerConfig(epochs=1, batch_size=8, lr=1e-2, patience=0, workers=0),
        out=tmp_path / "runs",
    )


def rewrite(path, change):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    rows = change(rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def sorted_rows(rows):
    return sorted(rows, key=lambda row: row["title"])


def other_label(rows):
    return [
        {**rows[0], "label": "cyst" if rows[0]["label"] != "cyst" else "benign mass"},
        *rows[1:],
    ]


def other_mask(rows):
    return [{**rows[0], "mask": rows[5]["mask"]}, *rows[1:]]


def other_patients(rows):
    return [{**row, "patient": "all"} if i < 2 else row for i, row in enumerate(rows)]


def test_changed_data_is_neither_resumed_nor_scored(arguments, own_table):
    assert train("segment", arguments) == 0
    folder = arguments.out / "frozen" / "seed-0"
    before = (folder / "results.json").read_bytes()
    rewrite(own_table, sorted_rows)  # which is no change
    assert train("segment", dataclasses.replace(arguments, resume=True)) == 0
    assert evaluate("segment", EvalArguments(run=folder, out=folder / "again")) == 0
    assert (folder / "results.json").read_bytes() == before
    unchanged = own_table.read_bytes()
    for change, message in (
        (other_label, "1 image has another label"),
        (other_mask, "1 image has another mask"),
        (lambda rows: rows[:-2], "2 images are gone"),
        (other_patients, "2 images are of other patients"),
    ):
        own_table.write_bytes(unchanged)
        rewrite(own_table, change)
        with pytest.raises(ResumeError, match=message):
            train("segment", dataclasses.replace(arguments, resume=True))
        with pytest.raises(ResumeError, match=message):
            evaluate("segment", EvalArguments(run=folder, out=folder / "third"))
        assert (folder / "results.json").read_bytes() == before


def test_an_image_that_cannot_be_read_leaves_nothing_in_the_way(arguments, own_table):
    trained = experiment.load_split(arguments, "segment").side("train")[0].image

    def breaking(rows):
        mine = next(row for row in rows if trained.endswith(row["filepath"]))
        return [{**mine, "filepath": "broken.png"}, *(row for row in rows if row is not mine)]

    rewrite(own_table, breaking)
    (own_table.parent / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    message = r"broken\.png: not an image.*run `fastht data check`"
    for _ in range(2):  # the second time it is not that a run is there already
        with pytest.raises(DataError, match=message):
            train("segment", arguments)
    with pytest.raises(ResumeError, match=r"holds no finished epoch.*--resume"):
        evaluate("segment", EvalArguments(run=arguments.out / "frozen" / "seed-0"))
    rewrite(own_table, lambda rows: rows[1:])  # that one comes first
    assert train("segment", arguments) == 0


def test_a_run_of_another_rule_of_splits_goes_on_with_its_sides(arguments, monkeypatch):
    """As runs of versions that dealt patients out by rank."""
    found = arguments.load("segment")
    with monkeypatch.context() as older:
        older.setattr(experiment, "split_cases", lambda cases, *_, **__: split_cases(cases, seed=9))
        assert train("segment", arguments) == 0
    before, now = (split_cases(found, seed=seed).side("test") for seed in (9, 0))
    assert before != now  # else nothing is tried here
    folder = arguments.out / "frozen" / "seed-0"
    results = (folder / "results.json").read_bytes()
    more = dataclasses.replace(arguments, methods=("frozen", "lora"), resume=True)
    assert train("segment", more) == 0
    assert evaluate("segment", EvalArguments(run=folder, out=folder / "again")) == 0
    assert (folder / "results.json").read_bytes() == results
    for scored in (folder / "again", arguments.out / "lora" / "seed-0"):
        with (scored / "predictions.csv").open() as file:
            assert {row["file"] for row in csv.DictReader(file)} == {case.image for case in before}
    other = dataclasses.replace(more, test_fraction=0.4)
    with pytest.raises(ResumeError, match="change sides"):
        train("segment", other)


def test_images_that_trained_are_told_when_they_are_scored(arguments, own_table, capsys):
    train("classify", arguments)
    folder = arguments.out / "frozen" / "seed-0"
    with (folder / "split.csv").open() as file:
        trained = sum(row["split"] == "train" for row in csv.DictReader(file))
    capsys.readouterr()
    evaluate("classify", EvalArguments(run=folder, data=str(own_table), out=folder / "all"))
    assert f"NOTE: {trained} of them trained this run" in capsys.readouterr().out
    assert (
        json.loads((folder / "all" / "results.json").read_text())["scored_that_trained"] == trained
    )
    evaluate("classify", EvalArguments(run=folder, out=folder / "own"))
    assert "NOTE" not in capsys.readouterr().out


def test_one_class_is_told_before_anything_is_built(arguments, own_table):
    rewrite(own_table, lambda rows: [row | {"label": "cyst"} for row in rows])
    with pytest.raises(DataError, match="all images are 'cyst'; give several classes"):
        train("classify", arguments)
    assert not arguments.out.exists()


def test_the_account_is_printed_first_and_kept_with_the_results(arguments, own_table, capsys):
    rewrite(own_table, lambda rows: [row | {"site": "x", "case": "1"} for row in rows])
    train("segment", arguments)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("48 cases from")
    assert printed[1].startswith("note: ")
    assert "case looks like the patient's" not in printed[1]  # the patient is known
    results = json.loads((arguments.out / "frozen" / "seed-0" / "results.json").read_text())
    assert results["provenance"]["notes"]["columns_not_read"] >= 2


def test_lesions_that_nearly_vanish_are_told_and_counted(arguments, own_table, tmp_path, capsys):
    with Image.open(arguments.load("segment").cases[0].masks[0]) as mask:
        for name, side in (("small", 1), ("none", 0)):
            blank = Image.new("L", mask.size)
            blank.paste(255, (0, 0, side, side))
            blank.save(tmp_path / f"{name}.png")
    masks = [str(tmp_path / "small.png"), str(tmp_path / "none.png")]
    rewrite(
        own_table,
        lambda rows: [r | {"mask": m} for r, m in zip(rows, masks, strict=False)] + rows[2:],
    )
    train("segment", arguments)
    printed = capsys.readouterr().out
    assert "note: 1 empty mask: " in printed
    # One of the sample's own outlines has a tip that does.
    assert "note: 2 images with lesions that fall between the pixels at 32 x 32: " in printed
    folder = arguments.out / "frozen" / "seed-0"
    results = json.loads((folder / "results.json").read_text())
    notes = results["provenance"]["notes"]
    assert (notes["masks_empty"], notes["lesions_between_pixels"]) == (1, 2)
    evaluate("segment", EvalArguments(run=folder, split="all", out=folder / "all"))
    assert json.loads((folder / "all" / "results.json").read_text())["provenance"]["notes"] == notes
