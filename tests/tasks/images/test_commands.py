"""Experiments as a user runs them: what they learn, leave, resume and refuse."""

import csv
import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image
from run_files import read, rows_of
from safetensors.torch import load_file

pytest.importorskip("monai")
pytest.importorskip("torchmetrics")

from fastht.cli import main
from fastht.data import DataError
from fastht.tasks.images import run as run_module
from fastht.tasks.images.commands import FewShotArguments, fewshot, train
from fastht.tasks.images.evaluate import EvalArguments, evaluate
from fastht.tasks.images.experiment import ExperimentArguments
from fastht.tasks.images.paired import report
from fastht.tasks.images.supervised import SupervisedTask
from fastht.tasks.results.report import ReportArguments
from fastht.tasks.training.state import ResumeError
from fastht.tasks.training.trainer import NonFiniteLossError


def test_segmentation_learns_and_leaves_everything_that_it_promises(arguments, capsys):
    longer = dataclasses.replace(arguments.trainer, epochs=10)
    chosen = dataclasses.replace(arguments, methods=("frozen", "ht"), trainer=longer)
    assert train("segment", chosen) == 0
    printed = capsys.readouterr().out
    assert "RANDOM weights" in printed
    assert "SIMULATED" not in printed
    for method in ("frozen", "ht"):
        folder = arguments.out / method / "seed-0"
        results = read(folder / "results.json")
        assert results["after"]["dice"] > results["before"]["dice"] + 0.02
        assert results["after"]["images"] == results["test_images"] > 0
        assert results["epochs"] == 10
        predictions = rows_of(folder / "predictions.csv")
        for score in ("dice", "dice_native", "nsd_native@2px"):
            found = [float(row[score]) for row in predictions]
            assert sum(found) / len(found) == pytest.approx(results["after"][score])
        assert "hd95_mm" not in results["after"]  # JPEG tells no spacing
        assert "dice_native" not in results["before"]
        for row in predictions:
            name = row["file"].rpartition("/")[2].partition(".")[0]
            (mask,) = (folder / "masks").glob(f"*{name}.png")
            with Image.open(mask) as picture:
                histogram, size = picture.histogram(), picture.size
            assert size == (int(row["width"]), int(row["height"])) == (160, 160)
            assert histogram[255] == float(row["predicted_pixels_native"])
            assert histogram[0] + histogram[255] == 160 * 160
        for picture in ("overlays.png", "curves.png"):
            assert (folder / picture).read_bytes().startswith(b"\x89PNG")
        assert list((folder / "tensorboard").iterdir())
        history = rows_of(folder / "history.csv")
        assert not [column for column in history[0] if "native" in column]  # each epoch is fast
        best = max(history, key=lambda row: float(row["val_dice"]))
        assert float(best["epoch"]) == results["best_epoch"]
    assert (arguments.out / "ht" / "seed-0" / "adapter" / "adapter_model.safetensors").exists()
    assert not (arguments.out / "frozen" / "seed-0" / "adapter").exists()
    assert [row["method"] for row in rows_of(arguments.out / "report.csv")] == ["frozen", "ht"]
    assert list(arguments.out.glob("comparison-*.png"))
    kept = load_file(arguments.out / "ht" / "seed-0" / "best.safetensors")
    assert not [name for name in kept if "patch_embed" in name or "conv1" in name]


def test_classification_leaves_probabilities_and_curves(finished, tmp_path):
    finished("classify", tmp_path / "runs")
    folder = tmp_path / "runs" / "ht" / "seed-0"
    results = read(folder / "results.json")
    classes = ["benign mass", "cyst", "malignant mass"]
    assert results["classes"] == classes
    predictions = rows_of(folder / "predictions.csv")
    right = 0
    for row in predictions:
        probabilities = [float(row[f"p({name})"]) for name in classes]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == classes[probabilities.index(max(probabilities))]
        right += row["predicted"] == row["label"]
    assert right / len(predictions) == pytest.approx(results["after"]["accuracy"])
    for name in classes:
        own = [row for row in predictions if row["label"] == name]
        found = sum(row["predicted"] == name for row in own) / len(own) if own else None
        assert results["after"][f"sensitivity/{name}"] == pytest.approx(found)
    for picture in ("roc.png", "confusion.png", "reliability.png", "curves.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert not any("/" in name for name in rows_of(folder / "history.csv")[0])


def test_a_classifier_has_a_temperature_of_its_validation_side_alone(finished, tmp_path, capsys):
    finished("classify", tmp_path / "runs")
    folder = tmp_path / "runs" / "ht" / "seed-0"
    found = read(folder / "results.json")["calibration"]["after"]
    assert found["calibrated"].keys() == found["uncalibrated"].keys()
    # Scored again, it is the same one; also where an older version of fastht left none.
    for kept in (True, False):
        if not kept:
            results = read(folder / "results.json")
            for name in ("calibration", "chance", "warnings", "confusion"):
                del results[name]
            (folder / "results.json").write_text(json.dumps(results))
        assert evaluate("classify", EvalArguments(run=folder, out=folder / "again")) == 0
        again = read(folder / "again" / "results.json")["calibration"]["after"]
        assert again["temperature"] == pytest.approx(found["temperature"], rel=1e-3)
        assert again["fitted_images"] == found["fitted_images"]
        assert again["uncalibrated"] == pytest.approx(found["uncalibrated"], rel=1e-3)
    printed = capsys.readouterr().out
    assert f"temperature {found['temperature']:.3g}" in printed
    assert "Accuracy without looking" in printed
    # The images that it was fitted on are not judged by it.
    evaluate("classify", EvalArguments(run=folder, split="val", out=folder / "val"))
    val = read(folder / "val" / "results.json")
    assert val["test_images"] == found["fitted_images"]
    assert val["calibration"]["after"]["temperature"] is None
    assert "fitted on images that are scored" in val["calibration"]["after"]["note"]


def intervals_of(folder, out):
    """Return the ends of a run's intervals as a report computes them from its predictions."""
    results = read(folder / "results.json")
    del results["intervals"]
    (folder / "results.json").write_text(json.dumps(results))
    report(ReportArguments((folder,), out))
    content = read(out / "report.json")
    return content["rows"][0], {d["score"]: d for d in content["differences"]}


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_scores_have_intervals_over_patients_that_the_predictions_give_again(
    finished, task, tmp_path
):
    printed = finished(task, tmp_path / "runs")
    folder = tmp_path / "runs" / "ht" / "seed-0"
    results = read(folder / "results.json")
    intervals, before, after = (results[name] for name in ("intervals", "before", "after"))
    predictions = rows_of(folder / "predictions.csv")
    patients = {row["patient"] for row in predictions}
    assert (intervals["unit"], intervals["units"]) == ("patient", len(patients))
    assert 1 < len(patients) < len(predictions)
    for name, (low, high) in intervals["after"].items():
        if low is not None:
            assert low <= after[name] <= high, name
    main = {"segment": "dice", "classify": "accuracy"}[task]
    assert intervals["after"][main][0] < intervals["after"][main][1]
    assert f"95 % intervals over {len(patients)} patients" in printed
    low, high = intervals["after"][main]
    assert f"{100 * after[main]:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in printed
    assert "ht: after minus before" in printed
    if task == "classify":
        low, high = intervals["after"]["specificity/cyst"]
        (line,) = [line for line in printed.splitlines() if line.startswith("cyst")]
        assert f"[{100 * low:.1f}, {100 * high:.1f}]" in line
    row, differences = intervals_of(folder, tmp_path / "again")
    for name in (main, *({"classify": ["f1", "auc"]}.get(task, ["iou", "hd95"]))):
        for version, key in (("after", name), ("before", f"{name}_before")):
            if (ends := intervals[version][name])[0] is not None:
                found = [row[f"{key}_low"], row[f"{key}_high"]]
                assert found == pytest.approx(ends, abs=1e-5), key
    difference = differences[main]
    assert difference["difference"] == pytest.approx(after[main] - before[main])
    ends = intervals["difference"][main]
    assert [difference["low"], difference["high"]] == pytest.approx(ends, abs=1e-5)
    split = results["provenance"]["split"]
    assert split["test"]["images"] == results["test_images"] == len(predictions)
    assert split["test"]["patients"] == len(patients)
    assert sum(side["images"] for side in split.values()) == 48
    assert results["provenance"]["patients_on_several_sides"] == 0
    assert results["provenance"]["seconds"] > results["seconds"] > 0


def test_repeats_are_seeds_and_make_a_deviation(arguments):
    short = dataclasses.replace(arguments.trainer, epochs=2)
    train("segment", dataclasses.replace(arguments, repeats=2, trainer=short))
    found = [read(arguments.out / "ht" / f"seed-{seed}" / "results.json") for seed in (0, 1)]
    assert found[0]["after"] != found[1]["after"]
    assert found[0]["after"]["images"] == found[1]["after"]["images"]
    (row,) = rows_of(arguments.out / "report.csv")
    first, second = (result["after"]["dice"] for result in found)
    assert float(row["dice"]) == pytest.approx((first + second) / 2)


def test_few_shot_trains_on_shares_of_every_class(arguments, table):
    options = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(ExperimentArguments)}
    short = dataclasses.replace(arguments.trainer, epochs=1)
    options |= {"percents": (10.0, 50.0), "trainer": short}
    assert fewshot(FewShotArguments(task="classify", **options)) == 0
    found = {
        percent: read(arguments.out / "ht" / f"{percent}-percent" / "seed-0" / "results.json")
        for percent in (10, 50)
    }
    assert 3 <= found[10]["train_images"] < found[50]["train_images"] < 33
    assert found[10]["test_images"] == found[50]["test_images"]
    assert list(arguments.out.glob("few-shot-*.png"))


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("method", ["ht", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_a_stopped_experiment_resumes_to_the_same_bits(arguments, monkeypatch, method):
    chosen = dataclasses.replace(
        arguments,
        methods=("frozen", method),
        trainer=dataclasses.replace(arguments.trainer, epochs=2),
    )
    whole = dataclasses.replace(chosen, out=arguments.out.with_name("whole"))
    train("classify", whole)
    score = SupervisedTask.evaluate
    calls = []

    def stopping(self):
        calls.append(1)
        if len(calls) == 2 + 2:  # in the second epoch of the second run
            raise StoppedError
        return score(self)

    monkeypatch.setattr(SupervisedTask, "evaluate", stopping)
    with pytest.raises(StoppedError):
        train("classify", chosen)
    monkeypatch.setattr(SupervisedTask, "evaluate", score)
    with pytest.raises(ResumeError, match="is there already: add --resume"):
        train("classify", chosen)
    performed = []
    fit = run_module.Trainer.fit
    monkeypatch.setattr(
        run_module.Trainer, "fit", lambda self: performed.append(self.progress.epoch) or fit(self)
    )
    assert train("classify", dataclasses.replace(chosen, resume=True)) == 0
    assert performed == [1]  # the first run was read, the second went on after its first epoch
    for name in ("frozen", method):
        folders = [out / name / "seed-0" for out in (chosen.out, whole.out)]
        weights = [(folder / "best.safetensors").read_bytes() for folder in folders]
        assert weights[0] == weights[1]
        results = [read(folder / "results.json") for folder in folders]
        assert results[0]["after"] == results[1]["after"]
        assert results[0]["before"] == results[1]["before"]


def test_a_run_of_an_old_version_is_read_resumed_and_scored_again(arguments, finished, tmp_path):
    """Old folders have no intervals, no provenance, no patients and nothing before training."""
    finished("segment", arguments.out)
    folder = arguments.out / "ht" / "seed-0"
    new = read(folder / "results.json")
    old = {name: new[name] for name in new if name not in ("intervals", "provenance")}
    (folder / "results.json").write_text(json.dumps(old))
    (folder / "predictions-before.csv").unlink()
    rows = rows_of(folder / "predictions.csv")
    with (folder / "predictions.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [name for name in rows[0] if name != "patient"])
        table.writeheader()
        table.writerows({k: v for k, v in row.items() if k != "patient"} for row in rows)
    assert train("segment", dataclasses.replace(arguments, resume=True)) == 0
    assert read(folder / "results.json") == old  # read, not done again
    (row,) = read(arguments.out / "report.json")["rows"]
    assert row["dice"] == old["after"]["dice"]
    assert row["dice_low"] < row["dice"] < row["dice_high"]
    assert evaluate("segment", EvalArguments(run=folder, out=tmp_path / "again")) == 0
    again = read(tmp_path / "again" / "results.json")
    assert again["after"] == old["after"]
    assert again["intervals"]["unit"] == "patient"  # read again with the data


def test_a_finished_run_of_other_settings_is_not_taken_for_its_own(arguments, finished):
    finished("segment", arguments.out)
    other = dataclasses.replace(arguments, width=8, resume=True)
    with pytest.raises(ResumeError, match=r"other settings \(width\)"):
        train("segment", other)


def test_eval_gives_the_scores_of_the_run_and_takes_other_data(
    arguments, finished, tmp_path, capsys
):
    finished("segment", arguments.out)
    folder = arguments.out / "ht" / "seed-0"
    assert evaluate("segment", EvalArguments(run=folder, out=tmp_path / "own")) == 0
    own = read(tmp_path / "own" / "results.json")
    assert own["after"] == read(folder / "results.json")["after"]
    assert own["intervals"]["after"] == read(folder / "results.json")["intervals"]["after"]
    everything = EvalArguments(run=folder, data=arguments.data, out=tmp_path / "all", batch_size=5)
    assert evaluate("segment", everything) == 0
    assert read(tmp_path / "all" / "results.json")["test_images"] == 48
    assert "48 of them are scored" in capsys.readouterr().out
    with pytest.raises(ResumeError, match="is a run of fastht segment, not of classify"):
        evaluate("classify", EvalArguments(run=folder))
    with pytest.raises(DataError, match="no case is on the side val"):
        evaluate("segment", EvalArguments(run=folder, data=arguments.data, split="val"))


def test_eval_names_what_is_missing_or_damaged(arguments, finished, tmp_path):
    with pytest.raises(ResumeError, match="is no run of fastht segment or classify"):
        evaluate("segment", EvalArguments(run=tmp_path))
    finished("segment", arguments.out)
    folder = arguments.out / "ht" / "seed-0"
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    content = (broken / "best.safetensors").read_bytes()
    (broken / "best.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ResumeError, match=r"best\.safetensors cannot be read"):
        evaluate("segment", EvalArguments(run=broken))


def test_labels_that_the_run_does_not_know_are_named(arguments, finished, table, tmp_path):
    finished("classify", arguments.out)
    other = tmp_path / "other.csv"
    other.write_text(table.read_text().replace("malignant mass,", "carcinoma,"))
    folder = arguments.out / "ht" / "seed-0"
    with pytest.raises(DataError, match="label 'carcinoma' is none of benign mass, cyst"):
        evaluate("classify", EvalArguments(run=folder, data=str(other)))


def test_a_loss_that_is_not_finite_names_the_files(arguments, monkeypatch):
    from fastht.tasks.images.goals import SegmentationGoal

    loss = SegmentationGoal.loss
    monkeypatch.setattr(SegmentationGoal, "loss", lambda *a: loss(*a) * float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"\d{4}\.jpg"):
        train("segment", arguments)


def test_nothing_is_begun_for_bad_arguments(arguments, tmp_path):
    for change in ({"methods": ("ht", "warp")}, {"data": "no-such.csv"}, {"model": "ViT-Z-99"}):
        with pytest.raises(ValueError, match=r"warp|no-such|ViT-Z-99"):
            train("segment", dataclasses.replace(arguments, **change))
    assert not arguments.out.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        train("segment", dataclasses.replace(arguments, out=tmp_path / "file"))


def test_the_commands_run_and_report_errors_in_one_line(table, tiny_model, tmp_path, capsys):
    options = ["--data", str(table), "--model", tiny_model, "--pretrained", "none"]
    options += ["--blocks", "0", "1", "--width", "16", "--image-size", "32", "--epochs", "1"]
    options += ["--batch-size", "8", "--workers", "0", "--bottleneck-dim", "8"]
    out = tmp_path / "run"
    command = ["segment", "train", *options, "--methods", "mona", "--out", str(out)]
    assert main(command) == 0
    assert "dice" in capsys.readouterr().out.lower()
    assert main(["segment", "eval", str(out / "mona" / "seed-0")]) == 0
    assert (out / "mona" / "seed-0" / "eval-few" / "results.json").exists()
    capsys.readouterr()
    assert main(command) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["classify", "eval", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        main(["segment", "draw"])


def test_running_statistics_come_along(tmp_path):
    from torch import nn

    from fastht.tasks.training.state import load_trainable_state, trainable_state

    def model():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        made[0].requires_grad_(False)
        return made

    first, second = model(), model()
    first(torch.rand(2, 3, 8, 8))
    state = trainable_state(first)
    assert set(state) == {f"1.{name}" for name, _ in first[1].state_dict().items()}
    load_trainable_state(second, state)
    assert torch.equal(second[1].running_mean, first[1].running_mean)
    with pytest.raises(ResumeError, match="other parameters"):
        load_trainable_state(second, {"1.weight": state["1.weight"]})
