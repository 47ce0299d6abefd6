"""EchoCare-CLIP's recipes are the published settings, and what changes them is said."""

import dataclasses
import math
from typing import get_args

import pytest
import torch
from run_files import read
from safetensors.torch import load_file

from fastht.cli import main
from fastht.data import load_records, split_records
from fastht.tasks.image_text import ablation_tower
from fastht.tasks.image_text.ablation_table import IMAGES, STATE, ablation_table
from fastht.tasks.image_text.compared import table_of
from fastht.tasks.image_text.dual_ablation import dual_variants, write_captions
from fastht.tasks.image_text.published import describe_recipe, published, with_recipe
from fastht.tasks.image_text.run import file_key, read_split
from fastht.tasks.image_text.train_arguments import Recipe, TrainArguments
from fastht.tasks.models.build import build_clip
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.optimization import make_schedule

RECIPES = [name for name in get_args(Recipe) if published(name)]


def test_there_are_the_eight_published_ones():
    kinds = [f"{text}-{towers}" for text in ("clip", "bert")
             for towers in ("heads", "image", "text", "full")]  # fmt: skip
    assert [f"echocare-clip-{kind}" for kind in kinds] == RECIPES
    assert published("echocare-clip-ablation") is published("none") is None
    base = TrainArguments(model="fastht-tiny", data="x.csv")
    for name in RECIPES:
        found = with_recipe(base, name)
        trainer = found.trainer
        assert (found.method, found.head, found.tower_lr_scale) == ("none", "mlp-256", 1.0)
        assert (trainer.lr, trainer.lr_min, trainer.weight_decay) == (1e-4, 0.0, 1e-4)
        assert (trainer.epochs, trainer.batch_size, trainer.warmup_steps) == (20, 128, 0)
        assert (trainer.clip_grad_norm, trainer.patience, trainer.precision) == (0, 0, "fp32")
        assert trainer.lr_schedule == "epochs"
        assert found.decay_all
        assert (found.flip, found.crop_margin) == (True, 0.125)
        towers = {"heads": "none", "full": "both"}
        last = name.rsplit("-", 1)[1]
        assert found.train_towers == towers.get(last, last)
        assert ("BERT" in found.text) == ("-bert-" in name)
        assert (found.model, found.data) == ("fastht-tiny", "x.csv")
        # What is the default is another thing: a tenth of the rate for towers, warm-up, clipping.
        assert base.tower_lr_scale == 0.1
        assert base.trainer.clip_grad_norm == 1.0
        assert base.trainer.warmup_steps is None


def test_what_options_change_of_a_recipe_is_said():
    found = with_recipe(TrainArguments(), "echocare-clip-bert-full")
    said = describe_recipe(found)
    assert "CHANGED" not in said
    assert "the published one is EchoCare's" in said
    changed = dataclasses.replace(found, trainer=dataclasses.replace(found.trainer, lr=1e-5))
    changed = dataclasses.replace(changed, text="tiny-bert", model="echocare:encoder.pth")
    said = describe_recipe(changed)
    assert "--lr 1e-05 (published: 0.0001)" in said
    assert "--text tiny-bert (published: hf:emilyalsentzer/Bio_ClinicalBERT)" in said
    assert "the published one" not in said
    assert describe_recipe(TrainArguments()) == ""


def test_the_published_cosine_falls_between_epochs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, 1.0, 0.0, steps=20, warmup=0, held=5)
    rates = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(
        [(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4) for _ in range(5)]
    )
    assert schedule.get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)


def test_the_command_takes_a_recipe_and_options_beside_it(pairs, tiny_model, tmp_path, capsys):
    pytest.importorskip("transformers")
    command = ["train", "--recipe", "echocare-clip-bert-heads", "--data", str(pairs)]
    command += ["--model", tiny_model, "--pretrained", "none", "--text", "tiny-bert"]
    command += ["--epochs", "2", "--batch-size", "10", "--workers", "0"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "CHANGED by options: --text tiny-bert (published:" in said
    assert "--epochs 2 (published: 20), --batch-size 10 (published: 128)" in said
    kept = read(tmp_path / "run" / "arguments.json")
    assert kept["recipe"] == "echocare-clip-bert-heads"
    assert (kept["crop_margin"], kept["trainer"]["beta2"]) == (0.125, 0.999)


def test_the_ablation_has_variants_that_differ_in_what_trains_and_one_table(tmp_path):
    arguments = TrainArguments(out=tmp_path / "run", recipe="echocare-clip-ablation")
    variants = dual_variants(arguments)
    assert {name: (a.method, a.train_towers) for name, a in variants.items()} == {
        "heads": ("none", "none"),
        "image": ("none", "image"),
        "text": ("none", "text"),
        "full": ("none", "both"),
        "full published rate": ("none", "both"),
        "HT": ("ht", "none"),
        "HT three tiers": ("ht", "none"),
        "HT one template": ("ht", "none"),
    }
    assert {(a.text, a.head, a.positives) for a in variants.values()} == {
        ("tiny-bert", "mlp-256", "caption")
    }
    own = dual_variants(dataclasses.replace(arguments, data="x.csv", text="hf:a/b", head="mlp-9"))
    assert len(own) == 6
    assert {(a.text, a.head) for a in own.values()} == {("hf:a/b", "mlp-9")}


def scored(gap, ranks, right, state="learning"):
    """Scores of one seed, of images of patients that have two each; one image has no patient."""
    patients = ["a", "a", "b", "b", None]
    images = {
        name: [[f"{i}.png", p, v] for i, (p, v) in enumerate(zip(patients, values, strict=True))]
        for name, values in (("rank_percentile", ranks), ("zero_shot_accuracy", right))
    }
    return {"gap": gap, "zero_shot_accuracy": sum(right) / 5, IMAGES: images, STATE: state}


def test_the_table_of_the_ablation_has_paired_intervals_over_patients_of_all_seeds():
    low, high = [0.5, 0.6, 0.4, 0.5, 0.5], [0.7, 0.8, 0.6, 0.7, 0.7]
    base = scored(0.0, low, [0, 0, 1, 0, 0], state=None)
    runs = {
        "heads": [scored(0.25, low, [1, 0, 1, 0, 0]), scored(0.35, low, [1, 0, 1, 0, 0])],
        "HT": [scored(0.5, high, [1, 1, 1, 1, 0]), scored(0.5, high, [1, 1, 1, 1, 0], "collapsed")],
    }
    scores = {
        name: {str(i): {"before": base, "after": run} for i, run in enumerate(own)}
        for name, own in runs.items()
    }
    cells = {
        row.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in row.split(" | ")[1:]]
        for row in ablation_table(scores).splitlines()
    }
    assert cells["gap"] == ["0.000 ± 0.000", "0.300 ± 0.071", "0.500 ± 0.000"]
    # What is the same for each image has an interval of no width, however the images differ.
    assert cells["rank percentile, less heads, 95 %"] == ["", "", "+20.0 to +20.0"]
    wide = [float(end) for end in cells["rank percentile, 95 %"][1].split(" to ")]
    assert wide[0] < 50 < wide[1]
    gained = [float(end) for end in cells["zero shot accuracy, less heads, 95 %"][2].split(" to ")]
    assert 0 <= gained[0] < 40 < gained[1]
    assert "recall" not in "".join(cells)
    assert cells["at the end"] == ["", "2 learning", "1 collapsed, 1 learning"]
    assert not any("one template" in name for name in cells)
    assert table_of({"a": [{}]}, ("x",), lambda *_: "", "h") == "| h | a |\n|---|---|\n"


def test_the_towers_of_the_ablation_learn_from_no_patient_who_is_held_out(tmp_path, monkeypatch):
    """And begin where they were left, which is not where random ones begin."""
    quick = dataclasses.replace(ablation_tower._TRAINER, epochs=1, lr=1e-4)
    monkeypatch.setattr(ablation_tower, "_TRAINER", quick)
    monkeypatch.setenv("FASTHT_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "few.csv"
    rows = write_captions(tmp_path)["one template"].read_text().splitlines()[:81]
    data.write_text("\n".join([*rows, ""]))
    trainer = TrainerConfig(epochs=1, batch_size=16, workers=0, seed=1)
    arguments = TrainArguments(data=str(data), val_fraction=0.25, trainer=trainer)
    made = ablation_tower.with_tower(arguments, data, tmp_path / "towers")
    assert made.data == arguments.data
    train_side, held_out = split_records(load_records(data).records, val_fraction=0.25, seed=1)
    sides = read_split(tmp_path / "towers" / "run-1")
    assert {sides[file_key(r.image)] for r in train_side} == {"train"}
    assert {sides[file_key(r.image)] for r in held_out} == {"val"}
    learnt, _ = build_clip(made.model, made.pretrained)
    random, _ = build_clip(made.model, "none")
    saved = load_file(tmp_path / "towers" / "run-1" / "towers.safetensors")
    state = learnt.state_dict()
    assert saved.keys() >= dict(learnt.named_parameters()).keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())
    assert not torch.equal(state["visual.conv1.weight"], random.state_dict()["visual.conv1.weight"])


def test_captions_of_the_ablation_have_three_tiers_or_one_template(tmp_path):
    tables = write_captions(tmp_path)
    rows = {
        name: [line.split("\t") for line in path.read_text().splitlines()[1:]]
        for name, path in tables.items()
    }
    tiers = [row[4] for row in rows["three tiers"]]
    shares = {tier: tiers.count(tier) / len(tiers) for tier in set(tiers)}
    assert shares == pytest.approx({"organ": 0.2, "condition": 0.3, "metadata": 0.5}, abs=0.08)
    assert len({row[1] for row in rows["one template"]}) == 3
    # Labels stay for scores, also where the caption is not told them.
    assert all(row[2] for row in rows["three tiers"])
    assert [row[:1] for row in rows["three tiers"]] == [row[:1] for row in rows["one template"]]
    untold = [row for row in rows["three tiers"] if row[4] == "organ"]
    assert not any("malignant" in row[1] or "cyst" in row[1] for row in untold)
