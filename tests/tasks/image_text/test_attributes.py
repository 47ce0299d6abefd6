"""``fastht attributes`` and the recipe on runs of a second, as a user runs them."""

import csv
import dataclasses
import json

import pytest
import yaml

from fastht.cli import main
from fastht.data import DataError
from fastht.tasks.image_text.attributes import AttributesArguments, attributes
from fastht.tasks.image_text.recipe import recipe_table, run_recipe, variants_of
from fastht.tasks.image_text.retrieve import RetrieveArguments, retrieve
from fastht.tasks.image_text.semantic import TagOptions
from fastht.tasks.image_text.train import TrainArguments, train
from fastht.tasks.image_text.zeroshot import ZeroShotArguments, zeroshot
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.state import ResumeError

CLASSES = ("anechoic fluid filled cyst", "bright echogenic solid mass")


@pytest.fixture
def arguments(pairs, tiny_model, tmp_path):
    return TrainArguments(
        data=str(pairs), model=tiny_model, pretrained="none", val_fraction=0.25,
        out=tmp_path / "run", tagging=TagOptions(tags="captions", tag_graph="tokens"),
        trainer=TrainerConfig(epochs=3, batch_size=10, lr=1e-2, patience=0, workers=0),
    )  # fmt: skip


def test_attributes_and_retrieval_of_a_run_with_and_without_its_tag_graph(arguments, capsys):
    trained = train(arguments)
    run = arguments.out
    options = {"run": run, "workers": 0}
    assert attributes(AttributesArguments(tags="captions", **options)) == 0
    printed = capsys.readouterr().out
    results = json.loads((next(run.glob("attributes-*")) / "results.json").read_text())
    before, after = results["before"], results["after"]
    # Dark or bright: what a probe tells from the features, before and after.
    assert after["probe_Echogenicity_accuracy"] > 0.9
    assert {"Diagnosis_recall", "plain_text_mean_recall", "probe_mean_accuracy"} <= after.keys()
    # The base has no tag graph: both texts are one.
    assert before["mean_accuracy"] == before["plain_text_mean_accuracy"]
    assert after.keys() == results["intervals"]["difference"].keys()
    assert results["test_images"] == trained["held_out_samples"]
    assert results["probe_images"] == trained["train_samples"]
    assert "ties count against the right answer" in printed
    assert "mean accuracy" in printed
    rows = list(csv.DictReader((next(run.glob("attributes-*")) / "predictions.csv").open()))
    assert len(rows) == results["test_images"]
    right = sum(r["Echogenicity after"] == r["Echogenicity"] for r in rows) / len(rows)
    assert right == pytest.approx(after["Echogenicity_accuracy"])

    assert retrieve(RetrieveArguments(**options)) == 0
    found = json.loads((next(run.glob("retrieve-*")) / "results.json").read_text())
    # The graph is loaded as it was trained: the same ranks by the same captions.
    for name in ("image_to_text_recall@1", "plain_text_image_to_text_recall@5"):
        assert found["after"][name] == pytest.approx(trained["after"][name])
    base = found["before"]
    assert base["image_to_text_mean_rank"] == base["plain_text_image_to_text_mean_rank"]
    mean = "image_to_text_mean_rank"
    assert found["after"][mean] != found["after"][f"plain_text_{mean}"]
    assert "plain text image to text recall@5" in capsys.readouterr().out

    prompts = run.parent / "prompts.yaml"
    prompts.write_text(yaml.safe_dump({"classes": {name: [f"A {name}"] for name in CLASSES}}))
    assert zeroshot(ZeroShotArguments(data=arguments.data, prompts=str(prompts), **options)) == 0
    found = json.loads((next(run.glob("zeroshot-*")) / "results.json").read_text())
    before, after = found["before"], found["after"]
    assert before["auc"] == before["plain_text_auc"]
    assert before["brier"] == before["plain_text_brier"]
    # The words of the prompts are tags, which the graph has learned to use.
    assert after["brier"] != after["plain_text_brier"]
    assert not any("plain_text" in name for name in after if "/" in name)
    low, high = found["intervals"]["after"]["plain_text_accuracy"]
    assert low <= after["plain_text_accuracy"] <= high
    assert "plain text accuracy" in capsys.readouterr().out


def test_an_image_with_several_captions_counts_once(tagged_pairs, tiny_model, tmp_path, capsys):
    """Rows of some images are twice, or their tags are parted among two rows: nothing changes."""
    with tagged_pairs.open(newline="") as file:
        rows = list(csv.DictReader(file))
    again = []
    for i, row in enumerate(rows):
        if i % 4 == 1:
            again.append(row | {"title": f"{row['title']}, once more", "Diagnosis": ""})
        if i % 8 == 1:
            row["Echogenicity"], again[-1]["Echogenicity"] = "", row["Echogenicity"]
    several = tagged_pairs.with_name("several.csv")
    with several.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows + again)
    results, predictions = [], []
    for name, data in (("one", tagged_pairs), ("two", several)):
        chosen = AttributesArguments(
            data=str(data), model=tiny_model, pretrained="none", workers=0, out=tmp_path / name
        )
        assert attributes(chosen) == 0
        results.append(json.loads((tmp_path / name / "results.json").read_text()))
        predictions.append((tmp_path / name / "predictions.csv").read_text())
    one, two = results
    assert two["before"] == one["before"]
    assert two["intervals"] == one["intervals"]
    assert two["tags"]["samples"] == two["test_images"] == 40
    assert two["tags"]["tagged"] == one["tags"]["tagged"]
    assert predictions[0] == predictions[1]
    printed = capsys.readouterr().out
    assert printed.count("50 captions of 40 images: an image counts once") == 1


def test_data_without_tags_is_one_error(pairs, tiny_model, tmp_path, capsys):
    options = ["--data", str(pairs), "--model", tiny_model, "--pretrained", "none"]
    assert main(["attributes", *options, "--out", str(tmp_path / "a")]) == 1
    assert "--tags captions" in capsys.readouterr().err
    named = AttributesArguments(
        data=str(pairs), model=tiny_model, pretrained="none", tags="captions", workers=0,
        out=tmp_path / "b",
    )  # fmt: skip
    assert attributes(named) == 0
    assert "No linear probes" in capsys.readouterr().out
    table = tmp_path / "untagged.csv"
    table.write_text(f"filepath,title\n{pairs.parent / '00.png'},a picture of something\n")
    with pytest.raises(DataError, match="no image to score has a tag"):
        attributes(dataclasses.replace(named, data=str(table)))


def test_the_recipe_trains_plain_clip_beside_itself_and_goes_on(arguments, capsys):
    recipe = dataclasses.replace(
        arguments, recipe="ultrasound-clip", tagging=TagOptions(tags="captions")
    )
    recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, epochs=1))
    found = run_recipe(recipe)
    assert list(found["scores"]) == ["plain", "ultrasound-clip"]
    plain, ours = (found["scores"][name]["0"] for name in found["scores"])
    assert plain["before"]["val_loss"] == ours["before"]["val_loss"]
    assert "val_semantic_loss" in ours["after"]
    assert "val_semantic_loss" not in plain["after"]
    table = (recipe.out / "recipe.md").read_text()
    assert table in capsys.readouterr().out
    cell = f"{100 * ours['after']['mean_recall']:.1f}"
    row = next(line for line in table.splitlines() if line.startswith("| mean recall"))
    assert row.split(" | ")[3].strip(" |") == cell
    with pytest.raises(ResumeError, match="holds something already"):
        run_recipe(recipe)
    weights = recipe.out / "plain" / "seed-0" / "adapter" / "adapter_model.safetensors"
    stamp = weights.stat().st_mtime_ns
    assert run_recipe(dataclasses.replace(recipe, resume=True))["scores"] == found["scores"]
    assert weights.stat().st_mtime_ns == stamp


def test_an_ablation_has_four_variants_that_differ_in_what_they_say(arguments):
    variants = variants_of(dataclasses.replace(arguments, recipe="ultrasound-clip-ablation"))
    assert {name: (t.semantic, t.tag_graph) for name, t in variants.items()} == {
        "plain": ("none", "none"),
        "soft labels": ("fastht", "none"),
        "tag graph": ("none", "tokens"),
        "both": ("fastht", "tokens"),
    }
    run = {"before": {"mean_recall": 0.1}, "after": {"mean_recall": 0.2}}
    other = {"before": {"mean_recall": 0.1}, "after": {"mean_recall": 0.4}}
    table = recipe_table({"plain": {"0": run, "1": other}})
    assert "mean and standard deviation of 2 seeds" in table
    assert "| mean recall | 10.0 ± 0.0 | 30.0 ± 14.1 |" in table
