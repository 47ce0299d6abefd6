"""``fastht train`` on a model's own weights: whole towers, and heads alone."""

import json

import forked
import pytest
import torch
from clip_runs import train_pairs
from safetensors.torch import load_file
from torch import nn

import fastht
from fastht.cli import main
from fastht.tasks.image_text import train as train_module
from fastht.tasks.image_text.adapted import adapt, own_weights
from fastht.tasks.image_text.retrieve import RetrieveArguments, retrieve
from fastht.tasks.image_text.run import load_clip
from fastht.tasks.image_text.towers import OwnWeights
from fastht.tasks.image_text.train import TrainArguments
from fastht.tasks.models.build import build_clip
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.state import ResumeError
from fastht.tasks.training.trainer import Trainer

HEADS = {"visual.proj", "text_projection", "logit_scale"}
QUICK = TrainerConfig(epochs=3, batch_size=10, lr=1e-2, workers=0, checkpoint_steps=1)


def adapted(name, method, towers):
    model = build_clip(name, "none")[0]
    adapt(model, method, config=fastht.HTConfig(), lora_rank=2, backend="auto")
    return model, own_weights(model, method, towers)


def side(name):
    return "image" if name.startswith("visual.") else "text"


@pytest.mark.parametrize("method", ["ht", "lora", "none"])
@pytest.mark.parametrize("towers", ["none", "image", "text", "both"])
def test_what_is_asked_for_has_gradients_and_nothing_else(tiny_model, method, towers):
    if method == "lora":
        pytest.importorskip("peft")
    model, own = adapted(tiny_model, method, towers)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    put_in = {n for n in trains if ".ht." in n or "lora_" in n}
    assert bool(put_in) == (method != "none")
    whole = {"image", "text"} if towers == "both" else {towers}
    expected = {
        n for n, _ in model.named_parameters() if side(n) in whole and n != "logit_scale"
    } | (HEADS if method == "none" else set())
    assert trains == put_in | expected
    assert (own is None) == (method != "none" and towers == "none")
    if own is None:
        return
    assert own.tensors().keys() == expected - put_in
    groups = own.groups(0.1)
    listed = [id(p) for group in groups for p in group.parameters]
    assert len(listed) == len({*listed}) == len(trains)
    of = {id(p): group for group in groups for p in group.parameters}
    for name, parameter in model.named_parameters():
        if name in trains:
            rest = name in put_in or (method == "none" and name in HEADS)
            assert of[id(parameter)].lr_scale == (1.0 if rest else 0.1), name
            assert of[id(parameter)].decays == (name in put_in or parameter.ndim > 1), name
    assert groups[0].lr_scale == 1.0


def test_a_model_without_a_head_has_one_error_and_whole_towers_are_a_remedy(tiny_model):
    def headless():
        model = build_clip(tiny_model, "none")[0].requires_grad_(False)
        model.visual.proj = None
        return model

    with pytest.raises(ValueError, match=r"image tower of .* --train-towers image"):
        own_weights(headless(), "none", "text")
    assert "image tower" in own_weights(headless(), "none", "image").describe()


def test_running_statistics_go_with_a_tower_that_trains_and_stay_with_one_that_does_not():
    model = nn.ModuleDict({"visual": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))})
    model["transformer"] = nn.BatchNorm1d(2)
    model.requires_grad_(False)
    names = OwnWeights(model, "image", heads=False).tensors().keys()
    assert "visual.1.running_mean" in names
    assert not any(name.startswith("transformer") for name in names)


@pytest.fixture(scope="module")
def runs(pairs, tiny_model, tmp_path_factory):
    """Runs with their results: HT adapters and the image tower, and all of the model itself."""
    folder = tmp_path_factory.mktemp("towers")
    return {
        (method, towers): (
            folder / method,
            train_pairs(
                pairs, tiny_model, folder / method,
                method=method, train_towers=towers, tower_lr_scale=0.5, trainer=QUICK,
            ),
        )
        for method, towers in (("ht", "image"), ("none", "both"))
    }  # fmt: skip


@pytest.mark.parametrize("kind", [("ht", "image"), ("none", "both")])
def test_towers_learn_and_a_run_is_judged_as_base_and_as_trained(
    runs, kind, tiny_model, tmp_path, recwarn
):
    out, results = runs[kind]
    assert results["after"]["val_loss"] < results["before"]["val_loss"] - 0.02
    assert results["train_towers"] == kind[1]
    base = build_clip(tiny_model, "none")[0].state_dict()
    saved = load_file(out / "towers.safetensors")
    moved = {name for name, tensor in saved.items() if not torch.equal(tensor, base[name])}
    assert {side(name) for name in moved} == ({"image"} if kind[0] == "ht" else {"image", "text"})
    assert len(moved) > 0.8 * len(saved)
    clip = load_clip(out, "unused", "unused", None)
    # The adapter is of the tower that trained beside it, and says so on any other.
    assert not [w for w in recwarn if "other weights" in str(w.message)]

    def weights():
        return {n: t.clone() for n, t in clip.model.state_dict().items() if n in saved}

    for version in clip.versions():
        expected = base if version == "before" else saved
        assert all(torch.equal(tensor, expected[n]) for n, tensor in weights().items())
    assert clip.describe()["train_towers"] == kind[1]
    # The numbers of the run are those of what it saved; "before" is the untrained base's.
    assert retrieve(RetrieveArguments(run=out, workers=0, out=tmp_path / "found")) == 0
    found = json.loads((tmp_path / "found" / "results.json").read_text())
    for version in ("before", "after"):
        for name in ("image_to_text_recall@1", "text_to_image_recall@5"):
            assert found[version][name] == pytest.approx(results[version][name])
    if kind[0] == "ht":
        with pytest.warns(UserWarning, match=r"other weights \(.* with towers.safetensors"):
            load_clip(None, tiny_model, "none", out / "adapter")


@pytest.mark.parametrize("kind", [("ht", "image"), ("none", "both")])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    runs, kind, pairs, tiny_model, tmp_path, monkeypatch
):
    whole, results = runs[kind]
    options = {"method": kind[0], "train_towers": kind[1], "tower_lr_scale": 0.5, "trainer": QUICK}
    batch, done = Trainer._batch, []

    def interrupt(self, *arguments):
        done.append(1)
        if len(done) == 6:
            raise KeyboardInterrupt
        return batch(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_batch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_pairs(pairs, tiny_model, tmp_path / "run", **options)
    other = options | {"tower_lr_scale": 0.1}
    with pytest.raises(ResumeError, match=r"tower_lr_scale was 0\.5 and is 0\.1 now"):
        train_pairs(pairs, tiny_model, tmp_path / "run", resume=True, **other)
    resumed = train_pairs(pairs, tiny_model, tmp_path / "run", resume=True, **options)
    assert resumed["before"] == results["before"]
    assert resumed["after"] == results["after"]
    for name in ("towers.safetensors", "adapter/adapter_model.safetensors"):
        if (whole / name).exists():
            assert (whole / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_lora_beside_towers_has_a_file_of_its_own(pairs, tiny_model, tmp_path):
    pytest.importorskip("peft")
    out = tmp_path / "run"
    trainer = TrainerConfig(epochs=1, batch_size=10, lr=1e-2, workers=0)
    train_pairs(pairs, tiny_model, out, method="lora", train_towers="text", trainer=trainer)
    assert all("lora_" in name for name in load_file(out / "lora.safetensors"))
    towers = load_file(out / "towers.safetensors")
    assert {side(name) for name in towers} == {"text"}
    # Embeddings of a text tower that trains are not kept.
    assert not (tmp_path / "cache").exists()
    clip = load_clip(out, "unused", "unused", None)
    texts = {version: clip.embedder(["a text"]) for version in clip.versions()}
    assert not torch.equal(texts["before"], texts["after"])
    (out / "towers.safetensors").write_bytes(b"damaged")
    with pytest.raises(ResumeError, match=r"towers\.safetensors cannot be read"):
        load_clip(out, "unused", "unused", None)


def test_the_warm_up_of_a_run_with_towers_is_a_twentieth(pairs, tiny_model, tmp_path, monkeypatch):
    shares = []

    class StopError(Exception):
        pass

    def seen(*_, warmup_share, **__):
        shares.append(warmup_share)
        raise StopError

    monkeypatch.setattr(train_module, "Trainer", seen)
    for towers in ("none", "image"):
        with pytest.raises(StopError):
            train_pairs(pairs, tiny_model, tmp_path / towers, train_towers=towers)
    assert shares == [0.0, 0.05]
    with pytest.raises(ValueError, match=r"tower_lr_scale is 0; .* --train-towers none"):
        TrainArguments(tower_lr_scale=0)


@pytest.mark.slow
@forked.needed
def test_two_processes_give_the_losses_of_one(pairs, tiny_model, tmp_path):
    histories = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        command = ["train", "--data", str(pairs), "--model", tiny_model, "--pretrained", "none"]
        command += ["--method", "none", "--train-towers", "both", "--warmup-steps", "2"]
        command += ["--epochs", "3", "--batch-size", "10", "--workers", "0", "--lr", "3e-3"]
        command += ["--val-fraction", "0.265", "--out", str(out)]
        if processes == 1:
            assert main(command) == 0
        else:
            forked.ranks(processes, "fastht.cli:main", command)
        rows = (out / "history.csv").read_text().splitlines()
        names = rows[0].split(",")
        histories.append(
            [dict(zip(names, map(float, r.split(",")), strict=True)) for r in rows[1:]]
        )
    one, two = histories
    assert one[-1]["train_loss"] < one[0]["train_loss"] - 0.01
    for a, b in zip(one, two, strict=True):
        for name in ("train_loss", "val_loss"):
            assert a[name] == pytest.approx(b[name], rel=2e-5), name
