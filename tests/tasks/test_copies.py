"""Scoring tells of copies of images that a run trained on, and can leave them out."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fastht.data import DataError
from fastht.data.overlap.remembered import REMEMBERED_NAME
from fastht.tasks.image_text.align import AlignArguments, align
from fastht.tasks.image_text.retrieve import RetrieveArguments, retrieve
from fastht.tasks.image_text.zeroshot import ZeroShotArguments, zeroshot
from fastht.tasks.images.commands import train
from fastht.tasks.images.evaluate import EvalArguments, evaluate
from fastht.tasks.images.experiment import ExperimentArguments
from fastht.tasks.results.known_images import KNOWN_NAME
from fastht.tasks.training.config import TrainerConfig


@pytest.fixture(scope="module")
def run(trained):
    return trained()


@pytest.fixture
def copied(run, pairs, tmp_path):
    """Two copies of each side of the run's split under other names; one of each is enlarged."""
    rows = list(csv.DictReader((run / "split.csv").open()))
    described = {str(pairs.with_name(row["filepath"])): row for row in csv.DictReader(pairs.open())}
    table = tmp_path / "copied.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title", "label"])
        for side in ("train", "val"):
            files = [row["file"] for row in rows if row["split"] == side]
            for label in {row["label"] for row in described.values()}:
                source = next(f for f in files if described[f]["label"] == label)
                name = f"{side}-{len(label)}.png"
                if label.startswith("bright"):
                    with Image.open(source) as image:
                        image.resize((48, 40), Image.Resampling.BICUBIC).save(tmp_path / name)
                else:
                    shutil.copy(source, tmp_path / name)
                writer.writerow([name, described[source]["title"], label])
    return table


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def prompts(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text(
        "classes:\n  anechoic fluid filled cyst: [An anechoic cyst]\n"
        "  bright echogenic solid mass: [A bright solid mass]\n"
    )
    return str(path)


@pytest.mark.parametrize("copies", ["warn", "leave-out"])
@pytest.mark.parametrize("command", ["zeroshot", "retrieve", "align"])
def test_copies_of_training_images(command, copies, run, copied, tmp_path, capsys):
    shared = {"run": run, "data": str(copied), "workers": 0, "copies": copies}
    if command == "zeroshot":
        chosen = ZeroShotArguments(**shared, prompts=prompts(tmp_path), out=tmp_path / "out")
        assert zeroshot(chosen) == 0
    elif command == "retrieve":
        assert retrieve(RetrieveArguments(**shared, out=tmp_path / "out")) == 0
    else:
        assert align(AlignArguments(**shared, out=tmp_path / "out")) == 0
    results = results_of(tmp_path / "out")
    leaves_out = copies == "leave-out"
    counts = {"bytes": 1, "pixels": 0, "near": 1, "perhaps": 0}
    assert results[KNOWN_NAME] == counts | {"left_out": 2 if leaves_out else 0}
    assert results["test_images"] == (2 if leaves_out else 4)
    printed = capsys.readouterr().out
    if leaves_out:
        assert f"left out: {run} trained on copies of them." in printed
        kept = {Path(r["file"]).name for r in results_rows(tmp_path / "out")}
        assert all(name.startswith("val") for name in kept)
    else:
        assert f"WARNING: {run} trained on copies of 2 of 4 images" in printed
        assert "--copies leave-out" in printed


def results_rows(folder):
    path = folder / "predictions.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def test_a_run_that_remembers_nothing_is_told(run, copied, tmp_path, capsys):
    older = tmp_path / "older"
    shutil.copytree(run, older)
    (older / REMEMBERED_NAME).unlink()
    shared = {"run": older, "data": str(copied), "workers": 0, "out": tmp_path / "out"}
    retrieve(RetrieveArguments(**shared))
    assert results_of(tmp_path / "out")[KNOWN_NAME] is None
    assert "no file of this data is in the split" in capsys.readouterr().out
    with pytest.raises(DataError, match="does not remember what it trained on"):
        retrieve(RetrieveArguments(**shared, copies="leave-out"))


def test_experiments_tell_of_copies_across_the_split_and_eval_leaves_them_out(
    table, tiny_model, tmp_path, capsys
):
    """One training image is among those of the test side, under another name and patient."""
    rows = list(csv.DictReader(table.open()))
    for i, row in enumerate(rows):
        row["split"] = ("train", "val", "test")[0 if i < 32 else 1 if i < 40 else 2]
    with Image.open(rows[0]["filepath"]) as image:
        image.crop((4, 9, 156, 150)).save(tmp_path / "copy.png")
    rows.append(rows[0] | {"filepath": str(tmp_path / "copy.png"), "patient": "new"})
    rows[-1]["split"] = "test"
    path = tmp_path / "sides.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    arguments = ExperimentArguments(
        data=str(path),
        model=tiny_model,
        pretrained="none",
        blocks=(0, 1),
        width=16,
        image_size=32,
        methods=("frozen",),
        trainer=TrainerConfig(epochs=1, batch_size=8, patience=0, workers=0),
        out=tmp_path / "runs",
    )
    train("classify", arguments)
    folder = tmp_path / "runs" / "frozen" / "seed-0"
    assert results_of(folder)[KNOWN_NAME]["near"] == 1
    assert "WARNING" in capsys.readouterr().out
    chosen = EvalArguments(run=folder, copies="leave-out", out=tmp_path / "out")
    evaluate("classify", chosen)
    results = results_of(tmp_path / "out")
    assert (results["test_images"], results[KNOWN_NAME]["left_out"]) == (8, 1)
