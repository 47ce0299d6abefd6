"""`fastht train` with LoRA: what trains and what does not, in the vision tower and in both."""

import csv
import json

import forked
import pytest
import safetensors.torch
import torch
from clip_runs import train_pairs

from fastht.cli import main
from fastht.tasks.image_text import train as train_module
from fastht.tasks.image_text.train import TrainArguments
from fastht.tasks.models.build import build_clip
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.state import ResumeError
from fastht.tasks.training.trainer import Trainer

pytest.importorskip("peft")

METHODS = ["lora", "lora-text"]
QUICK = TrainerConfig(epochs=2, batch_size=10, lr=1e-2, workers=0)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture
def models(monkeypatch):
    """The models that runs have built, in their order."""
    built, build = [], train_module.build_model

    def keep(*arguments):
        built.append(build(*arguments))
        return built[-1]

    monkeypatch.setattr(train_module, "build_model", keep)
    return built


def towers(names):
    return {"vision" if name.startswith("visual.") else "text" for name in names}


def test_lora_learns_in_its_towers_and_the_base_stays(
    method, models, pairs, tiny_model, tmp_path, capsys
):
    results = train_pairs(pairs, tiny_model, tmp_path / "run", method=method, lora_rank=4)
    assert results["after"]["val_loss"] < results["before"]["val_loss"] - 0.05
    assert results["after"]["zero_shot_accuracy"] >= 0.9
    assert (results["task"], results["method"]) == ("contrastive", method)
    saved = safetensors.torch.load_file(tmp_path / "run" / "lora.safetensors")
    assert all("lora_" in name for name in saved)
    expected = {"vision"} if method == "lora" else {"vision", "text"}
    learned = [name for name, tensor in saved.items() if "lora_B" in name and bool(tensor.any())]
    assert towers(saved) == towers(learned) == expected
    assert results["trainable_parameters"] == sum(tensor.numel() for tensor in saved.values())
    assert {min(t.shape) for t in saved.values()} == {4}
    assert not (tmp_path / "run" / "adapter").exists()
    assert str(tmp_path / "run" / "lora.safetensors") in capsys.readouterr().out

    base = dict(build_clip(tiny_model, "none")[0].named_parameters())
    trained = dict(models[0].model.named_parameters())
    kept = {
        n.replace("parametrizations.", "").replace(".original", ""): p
        for n, p in trained.items()
        if "lora_" not in n
    }
    assert kept.keys() == base.keys()
    assert all(torch.equal(parameter, base[name]) for name, parameter in kept.items())
    # What the final numbers are of is what is on disk.
    assert all(torch.equal(trained[name], tensor) for name, tensor in saved.items())


def test_before_is_the_base(method, pairs, tiny_model, tmp_path):
    ht = train_pairs(pairs, tiny_model, tmp_path / "ht", trainer=QUICK)
    lora = train_pairs(pairs, tiny_model, tmp_path / "lora", trainer=QUICK, method=method)
    assert lora["before"] == pytest.approx(ht["before"], rel=1e-6)
    assert lora["after"] != pytest.approx(ht["after"], rel=1e-3)


def test_the_best_epoch_is_kept_and_judged(method, pairs, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_is_better", lambda self, value: self.progress.epoch == 0)
    results = train_pairs(pairs, tiny_model, tmp_path / "run", method=method, trainer=QUICK)
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    losses = [float(row["val_loss"]) for row in rows]
    assert results["best_epoch"] == 1
    assert results["after"]["val_loss"] == pytest.approx(losses[0], rel=1e-5)
    assert results["after"]["val_loss"] != pytest.approx(losses[1], rel=1e-3)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    method, pairs, tiny_model, tmp_path, monkeypatch
):
    options = {"method": method, "trainer": TrainerConfig(epochs=4, batch_size=10, workers=0)}
    whole = train_pairs(pairs, tiny_model, tmp_path / "whole", **options)
    finish = Trainer._finish_epoch

    def interrupt(self, writer, seconds):
        finish(self, writer, seconds)
        if self.progress.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_finish_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_pairs(pairs, tiny_model, tmp_path / "run", **options)
    monkeypatch.undo()
    resumed = train_pairs(pairs, tiny_model, tmp_path / "run", resume=True, **options)
    # Not that of the state that it goes on from.
    assert resumed["before"] == whole["before"]
    assert resumed["after"] == whole["after"]
    one, two = (
        safetensors.torch.load_file(tmp_path / name / "lora.safetensors")
        for name in ("whole", "run")
    )
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())


def test_another_method_does_not_resume_a_run(pairs, tiny_model, tmp_path):
    train_pairs(pairs, tiny_model, tmp_path / "run", method="lora", trainer=QUICK)
    with pytest.raises(ResumeError, match="method was 'lora' and is 'ht' now"):
        train_pairs(pairs, tiny_model, tmp_path / "run", trainer=QUICK, resume=True)
    with pytest.raises(ResumeError, match="lora_rank was 16 and is 8 now"):
        train_pairs(
            pairs,
            tiny_model,
            tmp_path / "run",
            method="lora",
            lora_rank=8,
            trainer=QUICK,
            resume=True,
        )


def test_embeddings_of_a_text_tower_that_trains_are_not_kept(pairs, tiny_model, tmp_path):
    train_pairs(pairs, tiny_model, tmp_path / "run", method="lora-text", trainer=QUICK)
    assert not (tmp_path / "cache").exists()
    train_pairs(pairs, tiny_model, tmp_path / "frozen", method="lora", trainer=QUICK)
    assert (tmp_path / "cache").exists()


def test_the_command_takes_method_and_rank(pairs, tiny_model, tmp_path):
    command = ["train", "--data", str(pairs), "--model", tiny_model, "--pretrained", "none"]
    command += ["--epochs", "1", "--batch-size", "10", "--workers", "0", "--method", "lora-text"]
    assert main([*command, "--lora-rank", "2", "--out", str(tmp_path / "run")]) == 0
    arguments = json.loads((tmp_path / "run" / "arguments.json").read_text())
    assert (arguments["method"], arguments["lora_rank"]) == ("lora-text", 2)


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="lora_rank is 0; it must be at least 1"):
        TrainArguments(lora_rank=0)


@pytest.mark.slow
@forked.needed
def test_two_processes_give_the_losses_of_one(pairs, tiny_model, tmp_path):
    """The captions' embeddings are gathered with their gradients, as the images' are."""
    histories = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        command = ["train", "--data", str(pairs)]
        command += ["--model", tiny_model, "--pretrained", "none", "--method", "lora-text"]
        command += ["--epochs", "3", "--batch-size", "10", "--workers", "0", "--lr", "3e-3"]
        command += ["--val-fraction", "0.25", "--out", str(out)]
        if processes == 1:
            assert main(command) == 0
        else:
            forked.ranks(processes, "fastht.cli:main", command)
        histories.append(list(csv.DictReader((out / "history.csv").open())))
    one, two = histories
    assert float(one[-1]["train_loss"]) < float(one[0]["train_loss"]) - 0.01
    for a, b in zip(one, two, strict=True):
        for name in ("train_loss", "val_loss"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=2e-5), name
