"""`fastht train` as a user runs it: what it learns, leaves behind, and says when it cannot."""

import csv
import dataclasses
import json
import logging
import shutil

import pytest
import torch
from PIL import Image

import fastht
from fastht.cli import main
from fastht.data import DataError, load_records
from fastht.tasks.image_text.train import build_model, train
from fastht.tasks.image_text.train_arguments import SAMPLE_ARGUMENTS, TrainArguments
from fastht.tasks.images.paired import report
from fastht.tasks.results.report import ReportArguments
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.state import ResumeError
from fastht.tasks.training.trainer import NonFiniteLossError


@pytest.fixture
def arguments(pairs, tiny_model, tmp_path):
    return TrainArguments(
        data=str(pairs),
        model=tiny_model,
        pretrained="none",
        val_fraction=0.265,  # 10 of the 40
        trainer=TrainerConfig(epochs=6, batch_size=10, lr=1e-2, workers=0),
        out=tmp_path / "run",
    )


def test_files_of_several_pictures_are_told_once(pairs, arguments, capsys):
    """Of a plain table, whose layout tells nothing; a named frame is no loss."""
    folder = arguments.out.parent
    rows = []
    for i in range(12):
        with Image.open(pairs.with_name(f"{i:02}.png")) as image:
            if i in (3, 4):
                frames = [image.copy()] * 2
                image.save(folder / f"{i}.tiff", save_all=True, append_images=frames)
            else:
                image.save(folder / f"{i}.tiff")
        rows.append(f"{i}.tiff,Ultrasound number {i} of the neck,{1 if i == 4 else ''}")
    table = folder / "frames.csv"
    table.write_text("\n".join(["filepath,title,frame", *rows]))
    config = dataclasses.replace(arguments.trainer, epochs=1, batch_size=4)
    results = train(dataclasses.replace(arguments, data=str(table), trainer=config))
    told = "note: 1 file of several pictures, of which the middle one is read: "
    printed = capsys.readouterr().out
    assert printed.count(told) == 1
    assert "3.tiff (3); name one by a column frame" in printed
    assert results["provenance"]["notes"]["files_of_several_pictures"] == 1


@pytest.fixture
def finished(trained):
    """A run of the arguments, to be read or copied."""
    return trained()


def test_it_learns_and_leaves_everything_that_it_promises(arguments, capsys):
    results = train(arguments)
    out = arguments.out
    before, after = results["before"], results["after"]
    assert after["val_loss"] < before["val_loss"] - 0.05
    assert after["zero_shot_accuracy"] >= 0.9
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "results.json").read_text()) == results
    assert list((out / "tensorboard").iterdir())
    rows = list(csv.DictReader((out / "history.csv").open()))
    assert [float(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert float(best["val_loss"]) == pytest.approx(after["val_loss"], rel=1e-5)
    printed = capsys.readouterr().out
    assert "ties count against the right answer" in printed
    assert "RANDOM weights" in printed
    assert "image to text recall@10" in printed
    assert "SIMULATED" not in printed
    # Every score but the loss has an interval and a paired difference to before.
    intervals = results["intervals"]
    assert (intervals["unit"], intervals["units"]) == ("image", 10)
    assert "no patient is named" in printed
    for version in ("before", "after", "difference"):
        assert intervals[version].keys() == after.keys() - {"val_loss"}
    for name, (low, high) in intervals["after"].items():
        assert low <= after[name] <= high, name
    predictions = list(csv.DictReader((out / "predictions.csv").open()))
    for name in ("image_to_text_recall@5", "zero_shot_accuracy"):
        assert sum(int(row[name]) for row in predictions) / 10 == pytest.approx(after[name])
    sides = {name: side["images"] for name, side in results["provenance"]["split"].items()}
    assert sides == {"train": 30, "val": 10}
    report(ReportArguments((out,), out / "report"))
    found = json.loads((out / "report" / "report.json").read_text())
    scores = {d["score"]: [d["low"], d["high"]] for d in found["differences"]}
    assert scores == {n: pytest.approx(ends) for n, ends in intervals["difference"].items()}


def test_the_saved_adapter_is_the_trained_model(arguments, finished):
    from accelerate import Accelerator

    model = build_model(arguments, Accelerator(cpu=True)).model
    base = {name: p.clone() for name, p in model.named_parameters() if ".ht." not in name}
    fastht.load_adapter(model, finished / "adapter")
    assert all(bool(a.up.weight.any()) for a in fastht.adapters(model).values())
    again = {name: p for name, p in model.named_parameters() if ".ht." not in name}
    assert all(torch.equal(again[name], p) for name, p in base.items())
    config = json.loads((finished / "adapter" / "adapter_config.json").read_text())
    assert config["base_model"]["name"] == f"{arguments.model}/none"


def test_the_frozen_text_tower_sees_each_text_once(arguments, monkeypatch):
    import open_clip

    seen = []
    encode = open_clip.CLIP.encode_text

    def counting(self, text, normalize=False):
        seen.append(len(text))
        return encode(self, text, normalize)

    monkeypatch.setattr(open_clip.CLIP, "encode_text", counting)
    train(arguments)
    assert sum(seen) == 40 + 2 * 3  # captions, and three prompts for each of two classes
    train(dataclasses.replace(arguments, out=arguments.out.with_name("again")))
    assert sum(seen) == 46


def test_the_same_seed_gives_the_same_bits(arguments, finished):
    train(arguments)
    files = [out / "adapter" / "adapter_model.safetensors" for out in (finished, arguments.out)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_bfloat16_trains(arguments):
    config = dataclasses.replace(arguments.trainer, precision="bf16")
    results = train(dataclasses.replace(arguments, trainer=config))
    assert results["after"]["val_loss"] < results["before"]["val_loss"]


def test_a_run_is_not_overwritten_and_resumes_only_as_itself(arguments, finished):
    shutil.copytree(finished, arguments.out)
    with pytest.raises(ResumeError, match="add --resume, or give another --out"):
        train(arguments)
    with pytest.raises(ResumeError, match=r"val_fraction was 0\.265 and is 0\.5"):
        train(dataclasses.replace(arguments, val_fraction=0.5, resume=True))
    with pytest.raises(ResumeError, match="no state to resume"):
        train(dataclasses.replace(arguments, out=arguments.out / "other", resume=True))
    assert train(dataclasses.replace(arguments, resume=True))["epochs"] == 6


def changed(pairs, folder, change):
    """A copy of the pairs, whose rows a function has changed."""
    shutil.copytree(pairs.parent, folder, dirs_exist_ok=True)
    with pairs.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = change(rows)
    with (folder / pairs.name).open("w", newline="") as file:
        writer = csv.DictWriter(file, ["filepath", "title", "label", "patient"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / pairs.name


def edit(number, **cells):
    return lambda rows: [row | cells if i == number else row for i, row in enumerate(rows)]


OTHER_DATA = [
    (edit(3, title="Another caption of the same image"), r"1 image has another caption \(03"),
    (edit(3, label="another label"), r"1 image has another label \(03\.png\)"),
    (edit(3, patient="p1"), r"1 image is of another patient \(03\.png\)"),
    (lambda rows: rows[:-1], r"1 image is gone \(39\.png\)"),
]


@pytest.mark.parametrize("ended", [True, False])
def test_no_run_goes_on_with_other_data(arguments, pairs, tmp_path, ended, monkeypatch):
    data = changed(pairs, tmp_path / "data", lambda rows: rows)
    steps = dataclasses.replace(arguments.trainer, checkpoint_steps=1)
    longer = dataclasses.replace(arguments, data=str(data), trainer=steps)
    if ended:
        train(longer)
    else:
        # After the first epoch's line: the state on disk is of a batch before it.
        with monkeypatch.context() as patch:
            patch.setattr("fastht.tasks.training.trainer.tqdm.write", interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(longer)
    files = {f.name: f.read_bytes() for f in longer.out.iterdir() if f.is_file()}
    again = dataclasses.replace(longer, resume=True)
    for change, message in OTHER_DATA:
        changed(pairs, tmp_path / "data", change)
        with pytest.raises(ResumeError, match=message) as caught:
            train(again)
        assert "go on with the data as it was, or start anew" in str(caught.value)
        assert {f.name: f.read_bytes() for f in longer.out.iterdir() if f.is_file()} == files
    changed(pairs, tmp_path / "data", lambda rows: rows[::-1])  # in another order: the same data
    assert train(again)["epochs"] == 6


def interrupt(*_):
    raise KeyboardInterrupt


def test_no_run_goes_on_with_other_pixels(arguments, pairs, tmp_path):
    data = changed(pairs, tmp_path / "data", lambda rows: rows)
    quick = dataclasses.replace(arguments.trainer, epochs=1)
    first = dataclasses.replace(arguments, data=str(data), trainer=quick)
    train(first)
    shutil.copy(data.parent / "05.png", data.parent / "04.png")
    with pytest.raises(ResumeError, match=r"1 image has other pixels \(04\.png\)"):
        train(dataclasses.replace(first, resume=True))


def test_a_sorted_table_trains_the_same_bits(arguments, finished, pairs, tmp_path):
    shuffled = changed(pairs, tmp_path / "data", lambda rows: rows[::-1])
    again = train(dataclasses.replace(arguments, data=str(shuffled)))
    assert again["after"] == json.loads((finished / "results.json").read_text())["after"]


def test_a_run_of_an_older_version_with_another_split_is_refused(arguments):
    quick = dataclasses.replace(arguments.trainer, epochs=1)
    first = dataclasses.replace(arguments, trainer=quick)
    train(first)
    rows = list(csv.DictReader((first.out / "split.csv").open()))
    other = {"train": "val", "val": "train"}
    lines = [f"{row['file']},{other[row['split']]}" for row in rows]
    (first.out / "split.csv").write_text("\n".join(["file,split", *lines]))
    with pytest.raises(ResumeError, match="40 images change sides"):
        train(dataclasses.replace(first, resume=True))


# What the text tower does not read


HISTORY = "The patient was referred after a screening examination elsewhere. " * 6


def long_captions(pairs, folder):
    """The pairs with a history before the finding that is longer than the tower's 32 tokens."""
    findings = ["an oval cyst.", "a spiculated mass."]

    def lengthen(rows):
        return [
            row | {"title": f"{HISTORY} Image {i} shows {findings[i % 2]}"}
            for i, row in enumerate(rows)
        ]

    return changed(pairs, folder, lengthen)


def test_captions_that_become_equal_are_refused(arguments, pairs, tmp_path):
    data = long_captions(pairs, tmp_path / "data")
    with pytest.raises(DataError, match="most captions cannot be told apart: 40 captions") as told:
        train(dataclasses.replace(arguments, data=str(data)))
    assert "the 32 tokens that the text tower reads" in str(told.value)
    assert "40 captions become equal to others" in str(told.value)
    assert "--caption-part end or sentences" in str(told.value)
    assert not arguments.out.exists()


@pytest.mark.parametrize("part", ["end", "sentences"])
def test_another_part_of_long_captions_is_learnt(arguments, pairs, tmp_path, part, capsys):
    data = long_captions(pairs, tmp_path / "data")
    results = train(dataclasses.replace(arguments, data=str(data), caption_part=part))
    assert results["after"]["val_loss"] < results["before"]["val_loss"] - 0.05
    assert results["provenance"]["notes"]["captions_cut"] == 40
    assert "captions_equal_when_cut" not in results["provenance"]["notes"]
    assert "40 captions of 40 longer than the 32 tokens" in capsys.readouterr().out


def test_the_first_lines_and_the_results_tell_the_same_of_the_data(
    arguments, pairs, tmp_path, capsys
):
    def torn(rows):
        rows = edit(3, title="Lésion hypoéchogène à contours irréguliers")(rows)
        return [
            row | {"label": row["label"].upper() if i == 5 else row["label"]}
            for i, row in enumerate(rows)
        ]

    data = changed(pairs, tmp_path / "data", torn)
    quick = dataclasses.replace(arguments.trainer, epochs=1)
    results = train(dataclasses.replace(arguments, data=str(data), cleaning="paper", trainer=quick))
    assert results["provenance"]["notes"] == {"captions_lost_letters": 1, "labels_alike": 2}
    printed = capsys.readouterr().out
    for part in ("1 caption lost letters that are not ASCII: 03.png", "differ in spelling"):
        assert f"{part}" in printed
    assert printed.index("note: ") < printed.index("epoch 1")


def test_a_diverging_run_names_the_files_and_keeps_no_adapter(arguments, monkeypatch):
    from fastht.tasks.image_text import contrastive

    forward = contrastive.ContrastiveModule.forward
    monkeypatch.setattr(
        contrastive.ContrastiveModule, "forward", lambda *a: forward(*a) * float("nan")
    )
    with pytest.raises(NonFiniteLossError, match=r"\d\d\.png"):
        train(arguments)
    assert not (arguments.out / "adapter").exists()


def test_data_without_labels_has_no_zero_shot_row(arguments, pairs):
    table = pairs.with_name("unlabelled.csv")
    lines = pairs.read_text().splitlines()
    table.write_text("\n".join(line.rsplit(",", 1)[0] for line in lines))
    quick = dataclasses.replace(arguments.trainer, epochs=1)
    results = train(dataclasses.replace(arguments, data=str(table), trainer=quick))
    assert "zero_shot_accuracy" not in results["after"]
    assert results["classes"] == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_one_line(arguments, pairs, tmp_path, workers):
    folder = tmp_path / "pairs"
    shutil.copytree(pairs.parent, folder)
    image = folder / "07.png"
    image.write_bytes(image.read_bytes()[:-100])
    config = dataclasses.replace(arguments.trainer, workers=workers)
    changed = dataclasses.replace(arguments, data=str(folder / pairs.name), trainer=config)
    with pytest.raises(DataError, match=r"07\.png") as caught:
        train(changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": "no-such.csv"}, DataError, "no-such.csv"),
        ({"model": "ViT-Z-99"}, ValueError, "no model 'ViT-Z-99'"),
        ({"pretrained": "no-such-tag"}, ValueError, "pretrained='no-such-tag'"),
        ({"backend": "warp"}, ValueError, "'warp'"),
    ],
)
def test_bad_argument_is_named(arguments, change, error, message):
    if change.get("pretrained"):
        change = change | {"model": "ViT-B-32"}
    with pytest.raises(error, match=message):
        train(dataclasses.replace(arguments, **change))
    assert not arguments.out.exists()


def test_a_tower_without_blocks_is_refused(arguments, tmp_path):
    text = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(fastht.UnsupportedModelError, match="ResNet"):
        train(dataclasses.replace(arguments, model=f"local-dir:{tmp_path}"))
    assert not arguments.out.exists()


def test_half_precision_without_a_gpu_is_refused(arguments, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = dataclasses.replace(arguments.trainer, precision="fp16")
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        train(dataclasses.replace(arguments, trainer=config))


def test_the_command_trains_and_reports_errors_in_one_line(pairs, tiny_model, tmp_path, capsys):
    logging.disable(logging.CRITICAL)
    command = ["train", "--data", str(pairs), "--model", tiny_model, "--pretrained", "none"]
    command += ["--epochs", "1", "--batch-size", "10", "--workers", "0", "--variant", "baseline"]
    command += ["--layers", "1", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    saved = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert saved["config"]["layers"] == [1]
    assert saved["config"]["variant"] == "baseline"
    capsys.readouterr()
    assert main(command) == 1
    assert capsys.readouterr().err.count("\n") == 1
    logging.disable(logging.NOTSET)


def test_the_paper_recipe_is_the_default():
    defaults = TrainArguments()
    config = defaults.trainer
    assert (config.beta1, config.beta2, config.lr, config.lr_min) == (0.9, 0.95, 1e-4, 1e-8)
    assert (config.weight_decay, config.epochs, config.batch_size) == (0.01, 32, 32)
    assert defaults.val_fraction == 0.1
    assert SAMPLE_ARGUMENTS.data == "sample"


def test_the_embedded_sample_is_the_default_data():
    records = load_records("sample")
    assert len({record.label for record in records}) == 3
    assert all(record.patient for record in records)
