"""Losses and positives of training: keys of records, their floor, and runs with them."""

import csv
import json
import math

import pytest
import torch

from fastht.data import DataError, Record
from fastht.tasks.image_text.positives import describe_positives, loss_floor, positive_keys
from fastht.tasks.image_text.train import TrainArguments, train
from fastht.tasks.training.config import TrainerConfig

RECORDS = [
    Record("a", "cyst", "benign", "1"),
    Record("b", "cyst", None, "1"),
    Record("c", "mass", "benign", None),
    Record("d", "fluid", "malign", "2"),
]


def test_keys_number_what_samples_share_and_leave_out_what_they_lack():
    assert positive_keys(RECORDS, "none") is None
    assert positive_keys(RECORDS, "caption").tolist() == [0, 0, 1, 2]
    labels = positive_keys(RECORDS, "label").tolist()
    assert labels[0] == labels[2] != labels[3]
    assert labels[1] == -1
    assert positive_keys(RECORDS, "patient").tolist()[2] == -1
    with pytest.raises(DataError, match="--positives patient: no sample has a patient"):
        positive_keys([Record("a", "cyst")], "patient")


def test_the_floor_is_the_mean_log_of_positives_in_each_batch():
    keys = torch.tensor([0, 0, 1, 0, -1, -1, 2])
    # Batches of four: 3, 3, 1 and 3 positives; then one each.
    assert loss_floor(keys, 4) == pytest.approx(3 * math.log(3) / 7)
    assert loss_floor(keys, 2) == pytest.approx(2 * math.log(2) / 7)
    assert describe_positives(keys, "label") == (
        "Samples of one label are positives of each other: 3 of 7 training samples share theirs "
        "with others; 2 have none."
    )


def arguments(pairs, model, out, **options):
    trainer = TrainerConfig(epochs=2, batch_size=10, lr=3e-3, patience=0, workers=0)
    return TrainArguments(
        data=str(pairs), model=model, pretrained="none", val_fraction=0.25, trainer=trainer,
        out=out, **options,
    )  # fmt: skip


def test_samples_of_one_label_train_to_a_loss_over_its_floor(pairs, tiny_model, tmp_path, capsys):
    results = train(arguments(pairs, tiny_model, tmp_path, positives="label"))
    floor = results["held_out_loss_floor"]
    assert math.log(2) < floor < math.log(10)
    assert floor < results["after"]["val_loss"] < results["before"]["val_loss"]
    printed = capsys.readouterr().out
    count = results["train_samples"]  # by a hash of names, and so a fraction on average
    assert 20 < count < 40
    assert f"Samples of one label are positives of each other: {count} of {count}" in printed
    assert f"The held-out loss cannot fall below {floor:.4f}." in printed
    with (tmp_path / "history.csv").open() as file:
        assert {float(row["val_loss_floor"]) for row in csv.DictReader(file)} == {floor}


def test_the_sigmoid_loss_trains_a_model_with_a_bias(pairs, tiny_model, tmp_path):
    folder = tmp_path / "siglip"
    folder.mkdir()
    path = f"{tiny_model.removeprefix('local-dir:')}/open_clip_config.json"
    with open(path) as file:
        config = json.load(file)
    config["model_cfg"] |= {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    run = arguments(pairs, f"local-dir:{folder}", tmp_path / "run", loss="siglip")
    results = train(run)
    assert results["loss"] == "siglip"
    assert results["held_out_loss_floor"] is None
    assert results["after"]["val_loss"] < results["before"]["val_loss"]
    # At bias -10 a pair of unlike features costs about 10, and every other pair about nothing.
    assert 5 < results["before"]["val_loss"] < 25
    with pytest.raises(ValueError, match="needs a model with a logit bias"):
        train(arguments(pairs, tiny_model, tmp_path / "none", loss="siglip"))
