"""`fastht probe`: folders of every model, share and seed, all scored on the same images."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from planted_copies import reencode

from fastht.cli import main
from fastht.data import DataError
from fastht.data.cases import Case
from fastht.data.splits import few_shot, k_shot
from fastht.tasks.image_text.probe import ProbeArguments, probe
from fastht.tasks.image_text.probe_features import parse_baseline
from fastht.tasks.scores.classification import classification_scores

LABELS = ("anechoic fluid filled cyst", "bright echogenic solid mass")


@pytest.fixture(scope="module")
def run(trained):
    return trained()


@pytest.fixture(scope="module")
def probed(run, pairs, tiny_model, tmp_path_factory):
    """Probes of a run, of its base by itself and of a model of timm; all and few images."""
    out = tmp_path_factory.mktemp("probes") / "out"
    arguments = ProbeArguments(
        run=run,
        data=str(pairs),
        baselines=(f"{tiny_model}:none", "timm:resnet10t:none"),
        percents=(100.0, 30.0),
        shots=(1, 3),
        repeats=2,
        workers=0,
        out=out,
    )
    assert probe(arguments) == 0
    return out


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def folders(out):
    return sorted(path.parent for path in out.rglob("results.json"))


def test_each_model_share_and_seed_has_a_folder_of_the_same_test_images(probed, run, pairs):
    found = folders(probed)
    assert len(found) == 3 * (1 + 3 * 2)
    sides = {r["file"]: r["split"] for r in csv.DictReader((run / "split.csv").open())}
    held_out = {file for file, side in sides.items() if side == "val"}
    for folder in found:
        results = results_of(folder)
        rows = list(csv.DictReader((folder / "predictions.csv").open()))
        # What the run held out is scored, and nothing else.
        assert {row["file"] for row in rows} == held_out
        assert (results["task"], results["test_images"]) == ("probe", 10)
        split = results["provenance"]["split"]
        assert results["train_images"] == split["train"]["images"]
        # An eighth of what trained the run, on average.
        assert split["val"]["images"] == 4
        p = torch.tensor([[float(row[f"p({k}) before"]) for k in LABELS] for row in rows])
        labels = torch.tensor([LABELS.index(row["label"]) for row in rows])
        scores = classification_scores(p.double(), labels, LABELS)
        assert results["before"] == pytest.approx(scores, nan_ok=True)
        assert results["intervals"]["before"].keys() == results["before"].keys()
        assert results["chance"]["majority"] >= 0.5
    by_shots = {results_of(f)["shots"]: results_of(f)["train_images"] for f in found}
    assert (by_shots[1], by_shots[3]) == (2, 6)


def test_the_run_has_both_versions_and_a_baseline_is_the_same_before_and_after(probed):
    own = results_of(probed / "0-run" / "100-percent" / "seed-0")
    assert own["method"] == "ht"
    assert own["after"] != own["before"]
    assert own["after"]["accuracy"] >= 0.9
    assert "difference" in own["intervals"]
    second = next(f for f in folders(probed) if f.parts[-3].startswith("1-") and "100" in str(f))
    base = results_of(second)
    assert base["method"] == "base"
    # By the same code: the run's base and the model by its name are one.
    assert base["after"] == base["before"] == own["before"]
    timm = results_of(probed / "2-resnet10t" / "100-percent" / "seed-0")
    assert (timm["model"], timm["features"]) == ("timm:resnet10t/none", 512)


def test_how_c_was_chosen_is_told(probed):
    chosen = {
        name: results_of(probed / "0-run" / name / "seed-0")["strength"]["after"]["chosen"]
        for name in ("100-percent", "30-percent", "1-shots", "3-shots")
    }
    assert chosen["100-percent"].endswith("images of val")
    assert "folds within the shots" in chosen["30-percent"]
    assert chosen["1-shots"].startswith("fixed:")
    assert chosen["3-shots"] == "of 3 folds within the shots"


def test_the_report_compares_in_pairs_on_the_same_resamples(probed):
    found = json.loads((probed / "report.json").read_text())
    text = (probed / "report.md").read_text()
    assert "3 shots" in text
    assert "Accuracy without looking" in text
    pairs = [d for d in found["differences"] if d["score"] == "balanced_accuracy"]
    # Of each share: three pairs of models, and the run after less before.
    assert len(pairs) == 4 * (3 + 1)
    assert all(d["images"] == 10 for d in pairs)
    assert {row["seeds"] for row in found["rows"]} == {1, 2}


def test_shots_are_nested_and_of_every_class():
    cases = [Case(f"{i}", f"{i}.png", label="ab"[i % 5 == 0]) for i in range(50)]
    draws = {k: set(k_shot(cases, k, seed=3)) for k in (1, 2, 4, 16)}
    assert [len(found) for found in draws.values()] == [2, 4, 8, 26]  # one class has ten
    assert draws[1] < draws[2] < draws[4] < draws[16]
    assert draws[2] != set(k_shot(cases, 2, seed=4))
    assert [len(few_shot(cases, 1, at_least=n)) for n in (1, 2)] == [2, 4]
    with pytest.raises(DataError, match="0 shots"):
        k_shot(cases, 0)


def test_copies_of_training_images_are_told_and_left_out(run, pairs, tiny_model, tmp_path, capsys):
    """A set whose test side has a run's training image, copied and re-encoded under other names."""
    rows = list(csv.DictReader((run / "split.csv").open()))
    described = {str(pairs.with_name(r["filepath"])): r for r in csv.DictReader(pairs.open())}
    trained = [row["file"] for row in rows if row["split"] == "train"]
    others = [row["file"] for row in rows if row["split"] == "val"]
    generator = np.random.default_rng(0)
    table = tmp_path / "other.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "label", "split"])
        written = []
        for i, source in enumerate([*others, *trained[:2]]):
            name = tmp_path / f"renamed-{i}.png"
            if i == 10:
                with Image.open(source) as image:
                    reencode(image.convert("RGB"), generator).save(name)
            else:
                shutil.copy(source, name)
            label = described[source]["label"]
            written.append(label)
            side = ("train", "train", "val", *["test"] * 9)[written.count(label) - 1]
            writer.writerow([name.name, label, "test" if i >= len(others) else side])
    shared = {"run": run, "data": str(table), "workers": 0}
    probe(ProbeArguments(**shared, out=tmp_path / "warned"))
    assert f"WARNING: {run} trained on copies of 2 of 6 images" in capsys.readouterr().out
    probe(ProbeArguments(**shared, copies="leave-out", out=tmp_path / "left"))
    results = results_of(folders(tmp_path / "left")[0])
    assert results["test_images"] == 4
    assert results["copies_of_training_images"]["left_out"] == 2
    assert results["provenance"]["left_out"]["copies of what the run trained on"] == 2


def test_baselines_are_named_with_their_weights(tmp_path):
    file = tmp_path / "weights.pt"
    file.touch()
    assert parse_baseline("ViT-B-32:openai") == ("ViT-B-32", "openai")
    assert parse_baseline("ViT-B-32") == ("ViT-B-32", "openai")
    assert parse_baseline("biomedclip") == ("biomedclip", "openai")
    assert parse_baseline("timm:resnet10t") == ("timm:resnet10t", "timm")
    assert parse_baseline("timm:resnet10t:none") == ("timm:resnet10t", "none")
    assert parse_baseline("hf-hub:org/name") == ("hf-hub:org/name", "openai")
    assert parse_baseline(f"local-dir:/x:y:{file}") == ("local-dir:/x:y", str(file))
    with pytest.raises(ValueError, match="no name or no weights"):
        parse_baseline("")


def test_what_cannot_be_is_refused(probed, run, pairs, tiny_model, tmp_path, capsys):
    for change, message in {
        ("percents", ()): "give --percents or --shots",
        ("shots", (0,)): "shots at least 1",
        ("strengths", (0.0,)): "all above 0",
        ("repeats", 0): "at least 1",
        ("test_fraction", 0.95): "below 1 together",
    }.items():
        with pytest.raises(ValueError, match=message):
            ProbeArguments(**dict([change]))
    shared = ["--model", tiny_model, "--pretrained", "none", "--workers", "0"]
    command = ["probe", *shared, "--data", str(pairs), "--out"]
    assert main([*command, str(probed)]) == 1
    assert "holds something already; give another --out" in capsys.readouterr().err
    lines = pairs.read_text().splitlines()
    sides = [f"{line},{'train' if i % 3 else 'val'}" for i, line in enumerate(lines[1:])]
    table = pairs.with_name("no-test.csv")
    table.write_text("\n".join([f"{lines[0]},split", *sides]))
    made = ProbeArguments(
        model=tiny_model, pretrained="none", workers=0, data=str(table), out=tmp_path / "out"
    )
    probe(made)  # a side that lacks is taken out of those that train
    assert results_of(folders(tmp_path / "out")[0])["sides"] == "its own or drawn"
    with pytest.raises(ValueError, match="no model 'nothing'"):
        probe(ProbeArguments(**vars(made) | {"baselines": ("nothing",), "out": tmp_path / "b"}))
