"""`fastht predict` and `fastht export`: what a run predicts is what its evaluation scored."""

import json

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from dicom_files import write_dicom
from PIL import Image
from run_files import read, rows_of

pytest.importorskip("monai")
pytest.importorskip("torchmetrics")

from fastht.cli import main
from fastht.exporting import load_exported
from fastht.tasks.images.commands import train
from fastht.tasks.images.evaluate import EvalArguments, evaluate
from fastht.tasks.images.experiment import ExperimentArguments
from fastht.tasks.models.methods import AdapterSettings
from fastht.tasks.training.config import TrainerConfig

PROMPTS = """
classes:
  cyst: [an anechoic fluid filled cyst, a dark cyst]
  solid: [a bright echogenic solid mass]
  other: [something else]
"""


@pytest.fixture(scope="module")
def runs(table, tiny_model, tmp_path_factory):
    """A run of each task, each scored again: a second each."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTHT_CACHE", str(out / "cache"))
        for task in ("segment", "classify"):
            arguments = ExperimentArguments(
                data=str(table),
                model=tiny_model,
                pretrained="none",
                blocks=(0, 1),
                width=16,
                image_size=32,
                resize="letterbox",
                methods=("ht",),
                settings=AdapterSettings(bottleneck_dim=8),
                trainer=TrainerConfig(epochs=2, batch_size=8, lr=1e-2, patience=0, workers=0),
                out=out / task,
            )
            train(task, arguments)
            AcceleratorState._reset_state(reset_partial_state=True)
            evaluate(
                task, EvalArguments(run=out / task / "ht" / "seed-0", out=out / f"{task}-eval")
            )
            AcceleratorState._reset_state(reset_partial_state=True)
    return out


@pytest.fixture(scope="module")
def clip_run(trained):
    return trained()


def exported(run, out, *options):
    assert main(["export", str(run), "--out", str(out), *options]) == 0
    return out


def predicted(source, images, out, *options):
    assert main(["predict", str(source), *map(str, images), "--out", str(out), *options]) == 0
    return {row["file"]: row for row in rows_of(out / "predictions.csv")}


def test_masks_are_those_of_the_evaluation(runs, tmp_path, capsys):
    run = runs / "segment" / "ht" / "seed-0"
    scored = rows_of(runs / "segment-eval" / "predictions.csv")
    rows = predicted(run, [row["file"] for row in scored], tmp_path / "out")
    assert rows.keys() == {row["file"] for row in scored}
    areas = set()
    for before in scored:
        row = rows[before["file"]]
        assert float(row["area_pixels"]) == float(before["predicted_pixels_native"])
        areas.add(row["area_pixels"])
        with Image.open(tmp_path / "out" / row["mask"]) as ours:
            (theirs,) = (runs / "segment-eval" / "masks").glob(
                f"*{ours.filename.rpartition('/')[2]}"
            )
            assert np.array_equal(np.array(ours), np.array(Image.open(theirs)))
        overlay = tmp_path / "out" / "overlays" / row["mask"].removeprefix("masks/")
        with Image.open(overlay) as picture:
            assert picture.size == (int(row["width"]), int(row["height"]))
    assert len(areas) > 1
    printed = capsys.readouterr().out
    assert "no medical device" in printed
    assert "RANDOM weights" in printed


def test_probabilities_are_those_of_the_evaluation(runs, tmp_path):
    run = runs / "classify" / "ht" / "seed-0"
    scored = rows_of(runs / "classify-eval" / "predictions.csv")
    rows = predicted(run, [row["file"] for row in scored], tmp_path / "out")
    columns = [name for name in scored[0] if name.startswith("p(")]
    assert len(columns) == 3
    for before in scored:
        row = rows[before["file"]]
        assert row["predicted"] == before["predicted"]
        for name in columns:
            assert float(row[name]) == pytest.approx(float(before[name]), rel=1e-5)
    assert len({row[columns[0]] for row in rows.values()}) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("task", "form"), [("segment", "onnx"), ("classify", "torch")])
def test_an_exported_run_predicts_the_same(runs, task, form, tmp_path):
    if form == "onnx":
        pytest.importorskip("onnxscript")
    run = runs / task / "ht" / "seed-0"
    images = [row["file"] for row in rows_of(runs / f"{task}-eval" / "predictions.csv")][:5]
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[form]
    file = exported(run, tmp_path / f"m{suffix}", "--format", form)
    told = load_exported(file).metadata
    assert told["preprocess"]["fit"] == "letterbox"
    assert told["classes"] == read(run / "run.json")["classes"]
    by_run = predicted(run, images, tmp_path / "by-run")
    by_file = predicted(file, images, tmp_path / "by-file")
    for name, row in by_run.items():
        if task == "segment":
            assert float(by_file[name]["area_pixels"]) == pytest.approx(
                float(row["area_pixels"]), abs=2
            )
        else:
            for column in (c for c in row if c.startswith("p(")):
                assert float(by_file[name][column]) == pytest.approx(float(row[column]), rel=1e-3)


@pytest.mark.slow
def test_zero_shot_of_a_run_and_of_its_files(clip_run, pairs, tmp_path):
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    prompts = ["--prompts", str(tmp_path / "prompts.yaml")]
    images = sorted(pairs.parent.glob("*.png"))[:6]
    by_run = predicted(clip_run, images, tmp_path / "run", *prompts, "--classes", "cyst", "solid")
    assert {c for c in next(iter(by_run.values())) if c.startswith("p(")} == {"p(cyst)", "p(solid)"}
    both = exported(clip_run, tmp_path / "both.pt2")
    image = exported(clip_run, tmp_path / "image.pt2", "--part", "image", *prompts)
    for file, options in ((both, prompts), (image, [])):
        rows = predicted(file, images, tmp_path / file.stem, *options, "--classes", "cyst", "solid")
        for name, row in by_run.items():
            assert float(rows[name]["p(cyst)"]) == pytest.approx(float(row["p(cyst)"]), rel=1e-3)
    told = load_exported(image).metadata
    assert told["prompts"]["solid"] == ["a bright echogenic solid mass"]
    assert told["preprocess"]["crop"] == [32, 32]


def test_dicom_frames_areas_and_what_cannot_be_read(runs, tmp_path, capsys):
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 255, (2, 24, 40), dtype=np.uint8)
    images = tmp_path / "images"
    images.mkdir()
    write_dicom(images / "clip.dcm", frames, NumberOfFrames=2, PixelSpacing=[0.5, 0.25])
    (images / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (images / "notes.txt").write_text("a")
    out = tmp_path / "out"
    rows = predicted(runs / "segment" / "ht" / "seed-0", [images], out)
    assert [name.rpartition("/")[2] for name in rows] == ["clip.dcm::0", "clip.dcm::1"]
    for row in rows.values():
        assert float(row["area_mm2"]) == pytest.approx(0.125 * float(row["area_pixels"]))
        assert (out / row["mask"]).exists()
    skipped = {row["file"].rpartition("/")[2]: row["why"] for row in rows_of(out / "skipped.csv")}
    assert skipped.keys() == {"torn.png", "notes.txt"}
    assert "cannot be read" in skipped["torn.png"]
    assert read(out / "predict.json")["skipped"] == 2
    assert "2 of 2 images, whose files state a spacing" in capsys.readouterr().out


def test_it_goes_on_where_it_was_ended(runs, tmp_path, capsys):
    run = runs / "classify" / "ht" / "seed-0"
    images = [row["file"] for row in rows_of(runs / "classify-eval" / "predictions.csv")]
    whole = predicted(run, images, tmp_path / "whole")
    out = tmp_path / "out"
    predicted(run, images, out)
    lines = (out / "predictions.jsonl").read_text().splitlines()
    (out / "predictions.jsonl").write_text("\n".join([*lines[:2], lines[2][:9]]))
    (out / "predictions.csv").unlink()
    capsys.readouterr()
    again = predicted(run, images, out, "--resume", "--batch-size", "3")
    assert "2 of them are done already" in capsys.readouterr().out
    assert again.keys() == whole.keys()
    for name, row in whole.items():
        assert again[name]["predicted"] == row["predicted"]
    # Neither over what is there, nor with what is another model's.
    command = ["predict", str(run), *images, "--out", str(out)]
    assert main(command) == 1
    assert "go on with it by --resume" in capsys.readouterr().err
    assert main([*command, "--resume", "--frames", "middle"]) == 1
    assert "begun with other settings (frames)" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_with_the_remedy(runs, clip_run, pairs, tmp_path, capsys):
    run, image = runs / "segment" / "ht" / "seed-0", str(pairs.parent / "00.png")
    (tmp_path / "a.bin").write_bytes(b"1")
    for source, options, message in (
        (run, ["--prompts", "breast"], "leave out --prompts and --classes"),
        (clip_run, [], "tells classes apart by prompts: give --prompts"),
        (clip_run, ["--classes", "one"], "two or more --classes"),
        (runs / "segment", [], "it holds runs, give one"),
        (tmp_path / "none", [], "does not exist; give the folder of a run"),
        (tmp_path / "a.bin", [], "no .pt2 or .onnx"),
        (run, ["--batch-size", "0"], "give at least 1"),
    ):
        out = tmp_path / "out"
        assert main(["predict", str(source), image, *options, "--out", str(out)]) == 1
        assert message in capsys.readouterr().err
        assert not out.exists()
    assert main(["export", str(run), "--prompts", "breast", "--out", str(tmp_path / "m.pt2")]) == 1
    assert "leave them out" in capsys.readouterr().err


def test_images_that_trained_are_counted(runs, tmp_path, capsys):
    run = runs / "classify" / "ht" / "seed-0"
    trained = [row["file"] for row in rows_of(run / "split.csv") if row["split"] == "train"][:3]
    predicted(run, trained, tmp_path / "out")
    assert "3 of them trained this run" in capsys.readouterr().out


def test_a_broken_line_is_no_end_of_the_world(tmp_path):
    from fastht.tasks.inference.leave import read_lines

    (tmp_path / "predict.json").write_text(json.dumps({"settings": {"a": 1}}))
    (tmp_path / "predictions.jsonl").write_text('{"file": "x"}\n{"file":')
    assert read_lines(tmp_path, {"a": 1}) == [{"file": "x"}]
    assert (tmp_path / "predictions.jsonl").read_text() == '{"file": "x"}\n'
