"""`fastht zeroshot`: right classes by prompts, of unseen images, before and after."""

import csv
import json
import os
import shutil

import pytest
import torch

from fastht.cli import main
from fastht.data import DataError
from fastht.data.cases import Case, CaseSet
from fastht.tasks.image_text.judged_cases import CaseImages
from fastht.tasks.image_text.judged_records import PairsArguments, open_pairs
from fastht.tasks.image_text.zeroshot import (
    ZeroShotArguments,
    choose_side,
    class_probabilities,
    zeroshot,
)
from fastht.tasks.images.paired import report
from fastht.tasks.models.build import build_clip
from fastht.tasks.results.report import ReportArguments
from fastht.tasks.scores.calibration import fit_temperature

LABELS = ("anechoic fluid filled cyst", "bright echogenic solid mass")
PROMPTS = """
classes:
  anechoic fluid filled cyst:
    - Ultrasound 1 showing a anechoic fluid filled cyst
    - An anechoic cyst
  Bright echogenic solid mass:
    - Ultrasound 2 showing a bright echogenic solid mass
    - A bright solid mass
    - An echogenic mass
"""


@pytest.fixture(scope="module")
def run(trained):
    return trained()


@pytest.fixture
def arguments(run, pairs, tmp_path):
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    return {
        "run": run,
        "data": str(pairs),
        "prompts": str(tmp_path / "prompts.yaml"),
        "workers": 0,
        "out": tmp_path / "out",
    }


def read(out):
    results = json.loads((out / "results.json").read_text())
    return results, list(csv.DictReader((out / "predictions.csv").open()))


def sides(run):
    return {r["file"]: r["split"] for r in csv.DictReader((run / "split.csv").open())}


def test_unseen_images_are_classified_before_and_after(arguments, run, pairs, tiny_model, capsys):
    assert zeroshot(ZeroShotArguments(**arguments)) == 0
    results, rows = read(arguments["out"])
    assert results["task"] == "zeroshot"
    assert results["data"] == results["trained_on"] == str(pairs)
    assert (results["model"], results["method"]) == (f"{tiny_model}/none", "ht")
    assert results["classes"] == list(LABELS)
    assert (results["test_images"], results["left_out"]) == (10, 30)
    assert {row["file"] for row in rows} == {f for f, side in sides(run).items() if side == "val"}
    assert results["after"]["accuracy"] >= 0.9 > results["before"]["accuracy"]
    for version in ("before", "after"):
        right = [row["label"] == row[f"predicted {version}"] for row in rows]
        assert results[version]["accuracy"] == pytest.approx(sum(right) / 10)
        intervals = results["intervals"][version]
        assert intervals.keys() == results[version].keys()
        assert intervals["f1"][0] <= results[version]["f1"] <= intervals["f1"][1]
        assert results[version].keys() >= {"accuracy", "recall", "precision", "f1", "auc", "ece"}
        for label in LABELS:
            own = [row for row in rows if row["label"] == label]
            found = sum(row[f"predicted {version}"] == label for row in own) / len(own)
            assert results[version][f"sensitivity/{label}"] == pytest.approx(found)
        for row in rows:
            values = [float(row[f"p({label}) {version}"]) for label in LABELS]
            assert sum(values) == pytest.approx(1)
            assert row[f"predicted {version}"] == LABELS[values.index(max(values))]
    table = list(csv.DictReader((arguments["out"] / "results.csv").open()))
    assert float(table[0]["after"]) == results["after"]["accuracy"]
    for picture in ("roc.png", "confusion.png", "reliability.png"):
        assert (arguments["out"] / picture).read_bytes().startswith(b"\x89PNG")
    assert results["chance"]["majority"] == max(
        sum(row["label"] == label for row in rows) / 10 for label in LABELS
    )
    for version in ("before", "after"):
        calibration = results["calibration"][version]
        assert (calibration["temperature"], calibration["calibrated"]) == (None, None)
        assert "split all is scored" in calibration["note"]
    printed = capsys.readouterr().out
    assert f"30 images of split all left out, as {run} trained on them." in printed
    assert "before" in printed
    assert "95 % intervals over 10 images" in printed
    assert "difference" in printed
    assert results["provenance"]["left_out"] == {"the run trained on": 30}
    report(ReportArguments((arguments["out"],), arguments["out"] / "report"))
    found = json.loads((arguments["out"] / "report" / "report.json").read_text())
    scores = {d["score"]: [d["low"], d["high"]] for d in found["differences"]}
    for name in ("accuracy", "f1", "auc"):
        ends = results["intervals"]["difference"][name]
        assert scores[name] == pytest.approx(ends, abs=1e-5)
    assert "SIMULATED" not in printed


@pytest.fixture
def renamed(run, pairs, tmp_path):
    """A run on the pairs in a table whose columns have names of their own, and that table."""
    table = pairs.with_name("renamed.csv")
    header, *rows = pairs.read_text().splitlines()
    assert header == "filepath,title,label"
    table.write_text("\n".join(["Bild;Satz;Befund", *(row.replace(",", ";") for row in rows)]))
    folder = tmp_path / "renamed"
    shutil.copytree(run, folder)
    told = json.loads((folder / "arguments.json").read_text())
    told |= {"data": str(table), "separator": ";"}
    told |= {"image_key": "Bild", "caption_key": "Satz", "label_key": "Befund"}
    (folder / "arguments.json").write_text(json.dumps(told))
    return folder, table


def test_the_runs_own_table_is_read_as_the_run_read_it(arguments, renamed, pairs, capsys):
    run, table = renamed
    zeroshot(ZeroShotArguments(**arguments))
    expected, _ = read(arguments["out"])
    capsys.readouterr()
    arguments |= {"run": run, "data": os.path.relpath(table)}
    zeroshot(ZeroShotArguments(**arguments))
    found, _ = read(arguments["out"])
    for version in ("before", "after"):
        assert found[version] == expected[version]
    assert (
        "renamed.csv is read as the run read it: --image-key Bild, --caption-key Satz, "
        "--label-key Befund, --separator ;."
    ) in capsys.readouterr().out
    # Of two options the one that is given counts, and of another table nothing is known.
    with pytest.raises(DataError, match="no column nowhere"):
        zeroshot(ZeroShotArguments(**arguments, image_key="nowhere"))
    other = table.with_name("other.csv")
    other.write_text(table.read_text())
    with pytest.raises(DataError, match="name the one of the images by --image-key"):
        zeroshot(ZeroShotArguments(**arguments | {"data": str(other)}))
    # Likewise of pairs.
    judged = open_pairs("retrieve", PairsArguments(run=run, data=str(table), workers=0))
    assert len(judged.records) == 10
    with pytest.raises(DataError, match="--image-key"):
        open_pairs("retrieve", PairsArguments(run=run, data=str(other), workers=0))


def with_sides(pairs):
    """The table with a side for each image: every second one of each class is for validation."""
    lines = pairs.read_text().splitlines()
    table = pairs.with_name("sides.csv")
    rows = [f"{line},{'val' if i // 2 % 2 else 'test'}" for i, line in enumerate(lines[1:])]
    table.write_text("\n".join([f"{lines[0]},split", *rows]))
    return table


def test_one_temperature_is_fitted_on_validation_and_changes_no_prediction(
    arguments, pairs, tiny_model
):
    alone = {"run": None, "model": tiny_model, "pretrained": "none", "data": str(with_sides(pairs))}
    alone = arguments | alone
    zeroshot(ZeroShotArguments(**alone))
    results, rows = read(arguments["out"])
    found = results["calibration"]["before"]
    zeroshot(ZeroShotArguments(**alone | {"split": "val", "out": arguments["out"] / "val"}))
    val_results, val_rows = read(arguments["out"] / "val")
    assert found["fitted_images"] == len(val_rows) == 20
    assert not {row["file"] for row in rows} & {row["file"] for row in val_rows}
    columns = [f"p({label}) before" for label in LABELS]
    p = torch.tensor([[float(row[c]) for c in columns] for row in val_rows], dtype=torch.float64)
    labels = torch.tensor([LABELS.index(row["label"]) for row in val_rows])
    assert found["temperature"] == pytest.approx(fit_temperature(p, labels).value)
    for row in rows:  # as sure as the model is without it
        values = [float(row[column]) for column in columns]
        assert row["predicted before"] == LABELS[values.index(max(values))]
    assert found["calibrated"].keys() == found["uncalibrated"].keys() == {"ece", "brier", "nll"}
    assert found["uncalibrated"]["ece"] == results["before"]["ece"]
    # What is scored is never fitted on.
    assert val_results["calibration"]["before"]["temperature"] is None


def test_a_model_that_takes_all_for_one_class_is_warned_of_once(
    arguments, tiny_model, capsys, monkeypatch
):
    def collapsed(images, classes, scale):
        return torch.tensor([[0.9, 0.1]], dtype=torch.float64).expand(len(images), 2)

    monkeypatch.setattr("fastht.tasks.image_text.zeroshot.class_probabilities", collapsed)
    alone = arguments | {"run": None, "model": tiny_model, "pretrained": "none"}
    zeroshot(ZeroShotArguments(**alone))
    warning = f"predicts one class: all 40 images are taken for {LABELS[0]!r}"
    assert read(arguments["out"])[0]["warnings"] == [warning]
    printed = capsys.readouterr().out
    assert printed.count(warning) == 1
    assert "undefined" in printed  # the predictive value of a class that is never predicted


def test_before_is_the_base_read_by_open_clip_alone(arguments, tiny_model, pairs):
    """Softmax of the scaled means of cosines, of images through the model's own transform."""
    import open_clip
    from PIL import Image

    zeroshot(ZeroShotArguments(**arguments))
    _, rows = read(arguments["out"])
    model, transform = build_clip(tiny_model, "none")
    model.eval()
    tokenizer = open_clip.get_tokenizer(tiny_model)
    lines = [line[6:] for line in PROMPTS.splitlines() if line.startswith("    - ")]
    images = torch.stack([transform(Image.open(row["file"]).convert("RGB")) for row in rows])
    with torch.no_grad():
        features = model.encode_image(images, normalize=True)
        cosines = features @ model.encode_text(tokenizer(lines), normalize=True).T
        scores = torch.stack([cosines[:, :2].mean(dim=1), cosines[:, 2:].mean(dim=1)], dim=1)
        expected = (model.logit_scale.exp() * scores).softmax(dim=1)
    found = torch.tensor([[float(row[f"p({label}) before"]) for label in LABELS] for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_base_alone_is_the_same_before_and_after(arguments, tiny_model, capsys):
    alone = arguments | {"run": None, "model": tiny_model, "pretrained": "none"}
    zeroshot(ZeroShotArguments(**alone))
    results, rows = read(arguments["out"])
    assert results["before"] == results["after"]
    assert results["intervals"]["before"] == results["intervals"]["after"]
    assert (results["method"], results["test_images"], results["left_out"]) == ("base", 40, 0)
    assert "trained_on" not in results
    assert not any("after" in column for column in rows[0])
    printed = capsys.readouterr().out
    assert "after" not in printed
    assert "left out, as" not in printed


def test_an_adapter_alone_does_not_tell_what_it_trained_on(arguments, run, tiny_model, capsys):
    alone = arguments | {"run": None, "adapter": run / "adapter"}
    zeroshot(ZeroShotArguments(**alone, model=tiny_model, pretrained="none"))
    results, _ = read(arguments["out"])
    assert (results["method"], results["test_images"]) == ("ht", 40)
    assert "is not known; with --run it is left out" in capsys.readouterr().out


def test_the_sample_is_the_default_with_its_prompts(arguments, run, tiny_model, tmp_path, capsys):
    """It is what a run trained on the sample is judged by, too."""
    zeroshot(
        ZeroShotArguments(model=tiny_model, pretrained="none", workers=0, out=tmp_path / "out")
    )
    results, rows = read(tmp_path / "out")
    assert results["classes"] == ["benign mass", "cyst", "malignant mass"]
    assert (results["prompts"], len(rows)) == ("sample", 320)
    assert "SIMULATED" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"trained on .*pairs\.csv.*by --data"):
        zeroshot(ZeroShotArguments(run=run, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_set_of_images_that_all_trained_is_refused(arguments, run, pairs):
    chosen = {file.rpartition("/")[2] for file, side in sides(run).items() if side == "train"}
    lines = pairs.read_text().splitlines()
    seen = pairs.with_name("seen.csv")
    seen.write_text("\n".join([lines[0], *(x for x in lines[1:] if x.split(",")[0] in chosen)]))
    with pytest.raises(DataError, match=r"all 30 images of split all trained .*ht; give others"):
        zeroshot(ZeroShotArguments(**arguments | {"data": str(seen)}))
    assert not arguments["out"].exists()


def case_set(*splits):
    cases = [Case(f"{i}", f"{i}.png", label="a", split=s) for i, s in enumerate(splits)]
    return CaseSet(tuple(cases), "data", "table")


def test_the_side_is_test_or_else_val_or_else_everything():
    def chosen(found, split=None):
        side, cases = choose_side(found, split)
        return side, [case.name for case in cases]

    whole = case_set("train", "test", "val", "test")
    assert chosen(whole) == ("test", ["1", "3"])
    assert chosen(whole, "all") == ("all", ["0", "1", "2", "3"])
    assert chosen(whole, "train") == ("train", ["0"])
    assert chosen(case_set("train", "val")) == ("val", ["1"])
    assert chosen(case_set("train", None)) == ("all", ["0", "1"])
    assert chosen(case_set(None, None)) == ("all", ["0", "1"])
    with pytest.raises(DataError, match="no case is for test; choose --split of train, val, all"):
        choose_side(case_set("val", "train"), "test")


def test_sure_predictions_still_rank():
    images = torch.tensor([[1.0, 0.0], [0.999, 0.01], [0.0, 1.0]])
    found = class_probabilities(images, torch.eye(2), 30.0)
    assert found[0, 0] > found[1, 0] > 0.99
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3, dtype=torch.float64))


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png"):
        CaseImages([Case("a", str(tmp_path / "a.png"))], lambda image: image)[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"prompts": None},
            ValueError,
            r"Give --prompts breast, liver, lung, ",
        ),
        ({"prompts": "breast"}, DataError, "no prompts for 'anechoic fluid filled cyst'"),
        ({"split": "test"}, DataError, "no case is for test"),
        ({"data": "nowhere"}, DataError, "nowhere"),
    ],
)
def test_bad_arguments_are_named(arguments, change, error, message):
    with pytest.raises(error, match=message):
        zeroshot(ZeroShotArguments(**arguments | change))
    assert not arguments["out"].exists()


def test_rows_that_cannot_be_used_are_left_out_and_counted_as_by_train(arguments, pairs, capsys):
    table = pairs.with_name("holes.csv")
    header, _, *others = pairs.read_text().splitlines()
    bad = ["nowhere.png,An image that is not there,bright echogenic solid mass", "00.png,None,"]
    table.write_text("\n".join([header, *bad]))
    with pytest.raises(DataError, match="no image has a label"):
        zeroshot(ZeroShotArguments(**arguments | {"data": str(table)}))
    table.write_text("\n".join([header, *bad[:1]]))
    with pytest.raises(DataError, match=r"holes\.csv, line 2: no image .*nowhere\.png"):
        zeroshot(ZeroShotArguments(**arguments | {"data": str(table)}))
    table.write_text("\n".join([header, *bad, *others]))
    assert zeroshot(ZeroShotArguments(**arguments | {"data": str(table)})) == 0
    results, rows = read(arguments["out"])
    assert results["unusable"] == 2
    assert len(rows) == results["test_images"]
    assert not any(row["file"].endswith("00.png") for row in rows)
    printed = capsys.readouterr().out
    assert "left out: 2 unusable" in printed
    assert "line 2: no image" in printed
    assert "00.png: no label" in printed


def test_a_single_class_is_refused(arguments, pairs):
    lines = pairs.read_text().splitlines()
    single = pairs.with_name("single.csv")
    single.write_text("\n".join([lines[0], *lines[1::2]]))
    with pytest.raises(DataError, match="all images are 'anechoic fluid filled cyst'"):
        zeroshot(ZeroShotArguments(**arguments | {"data": str(single)}))


def test_the_command(arguments, capsys):
    command = ["zeroshot", "--run", str(arguments["run"]), "--data", arguments["data"]]
    command += ["--prompts", arguments["prompts"], "--out", str(arguments["out"])]
    assert main([*command, "--workers", "0"]) == 0
    assert (arguments["out"] / "results.json").exists()
    assert main([*command, "--prompts", "kidney"]) == 1
    assert "fastht zeroshot: there are no prompts 'kidney'" in capsys.readouterr().err
