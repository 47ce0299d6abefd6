"""EchoCare-CLIP's recipes are the published settings, and what changes them is said."""

import dataclasses
import math
from typing import get_args

import pytest
import torch
from run_files import read

from fastht.cli import main
from fastht.tasks.image_text.compared import table_of
from fastht.tasks.image_text.dual_ablation import (
    SHOWN,
    ablation_table,
    dual_variants,
    write_captions,
)
from fastht.tasks.image_text.published import describe_recipe, published, with_recipe
from fastht.tasks.image_text.train_arguments import Recipe, TrainArguments
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
    run = {"gap": 0.25, "zero_shot_accuracy": 0.5, SHOWN[4]: [0.4, 0.6], "alarm": 1.0}
    table = ablation_table({"heads": {"0": {"before": run, "after": run | {"gap": 0.5}}}})
    assert "| gap | 0.250 | 0.500 |" in table
    assert "| zero shot accuracy | 50.0 | 50.0 |" in table
    assert "| 40-60 | 40-60 |" in table
    assert "1 of 1" in table
    assert "recall" not in table
    assert table_of({"a": [{}]}, ("x",), lambda *_: "", "h") == "| h | a |\n|---|---|\n"


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
