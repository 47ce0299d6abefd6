"""``fastht train --text --head``: runs of a dual encoder of a second, and what reads them."""

import dataclasses
import json
import math

import pytest
import torch
from clip_runs import train_pairs
from run_files import read, rows_of
from safetensors.torch import load_file
from text_towers import save_bert

from fastht.cli import main
from fastht.exporting import load_exported
from fastht.tasks.image_text import contrastive
from fastht.tasks.image_text.augmentation import cut_at_random, with_margin
from fastht.tasks.image_text.contrastive import ContrastiveTask
from fastht.tasks.image_text.pooled_images import PooledImages
from fastht.tasks.image_text.run import load_clip
from fastht.tasks.models.build import build_clip
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.state import ResumeError
from fastht.tasks.training.trainer import Trainer

pytest.importorskip("transformers")

DUAL = {"text": "tiny-bert", "head": "mlp-16"}
QUICK = TrainerConfig(epochs=4, batch_size=10, lr=1e-2, workers=0, checkpoint_steps=1)
HEADS = {"visual.head", "text.head", "logit_scale"}
KINDS = {"heads": ("none", "none"), "ht": ("ht", "none"), "full": ("none", "both")}


@pytest.fixture(scope="module")
def runs(pairs, tiny_model, tmp_path_factory):
    """Runs of each kind with their results."""
    folder = tmp_path_factory.mktemp("dual")
    return {
        name: (
            folder / name,
            train_pairs(
                pairs, tiny_model, folder / name,
                method=method, train_towers=towers, trainer=QUICK, **DUAL,
            ),
        )
        for name, (method, towers) in KINDS.items()
    }  # fmt: skip


def part(name):
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_for_trains_and_the_run_is_judged_as_it_was(runs, kind):
    out, results = runs[kind]
    assert results["after"]["val_loss"] < results["before"]["val_loss"] - 0.05
    assert results["collapse"]["state"] == "learning"
    assert results["model"].endswith("/none + tiny-bert + mlp-16")
    assert results["encoder"]["text_pooling"] == "pooler"
    saved = load_file(out / "towers.safetensors")
    towers = {"visual.tower", "text.tower"} if kind == "full" else set()
    assert {part(name) for name in saved} == HEADS | towers
    assert (out / "adapter").exists() == (kind == "ht")
    clip = load_clip(out, "unused", "unused", None)
    texts = {version: clip.embedder(["a cyst", "a mass"]) for version in clip.versions()}
    assert texts["before"].shape == (2, 16)
    assert not torch.allclose(texts["before"], texts["after"], atol=1e-3)
    state = clip.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize("kind", ["heads", "ht"])
def test_zeroshot_retrieve_and_align_take_a_run(runs, kind, tmp_path, pairs, capsys):
    out, results = runs[kind]
    for command in ("retrieve", "align"):
        folder = tmp_path / command
        assert main([command, "--run", str(out), "--workers", "0", "--out", str(folder)]) == 0
        found = read(folder / "results.json")
        for version in ("before", "after"):
            for name in ("image_to_text_recall@1", "text_to_image_recall@5"):
                assert found[version][name] == pytest.approx(results[version][name]), name
    assert found["after"]["rank_percentile"] > found["before"]["rank_percentile"] + 0.1
    prompts = tmp_path / "prompts.yaml"
    classes = ("anechoic fluid filled cyst", "bright echogenic solid mass")
    sentences = {name: [f"Ultrasound showing a {name}"] for name in classes}
    prompts.write_text(json.dumps({"organ": "breast", "classes": sentences}))
    command = ["zeroshot", "--run", str(out), "--data", str(pairs), "--workers", "0"]
    command += ["--prompts", str(prompts), "--out", str(tmp_path / "zeroshot")]
    assert main(command) == 0, capsys.readouterr().err
    assert len(rows_of(tmp_path / "zeroshot" / "predictions.csv")) == 10


def test_frozen_towers_run_once_and_give_the_bits_that_they_give_at_each_step(
    runs, pairs, tiny_model, tmp_path, monkeypatch, capsys
):
    def train(name, **changes):
        options = DUAL | {"method": "none", "trainer": QUICK} | changes
        train_pairs(pairs, tiny_model, tmp_path / name, **options)
        return (tmp_path / name / "towers.safetensors").read_bytes(), capsys.readouterr().out

    cached = (runs["heads"][0] / "towers.safetensors").read_bytes()
    once, said = train("once")
    assert once == cached
    assert "The frozen image tower and the text tower ran once" in said
    passes = []
    monkeypatch.setattr(ContrastiveTask, "_pool_images", lambda self, augmented: None)
    pool = contrastive.DualEncoder.encode_image
    monkeypatch.setattr(
        contrastive.DualEncoder,
        "encode_image",
        lambda self, image, normalize=False: passes.append(1) or pool(self, image, normalize),
    )
    each, said = train("each")
    assert len(passes) > 4
    assert "frozen text tower ran once" in said
    assert each == cached
    monkeypatch.undo()
    # Images that training changes are none of these.
    mirrored, said = train("mirrored", flip=True)
    assert mirrored != cached
    assert "--flip or --crop-margin change the images: it runs at each step" in said


def test_a_dual_encoder_goes_on_to_the_same_bits(runs, pairs, tiny_model, tmp_path, monkeypatch):
    def interrupt(self, batch, train=Trainer._batch):
        if self.progress.step == 7:
            raise KeyboardInterrupt
        return train(self, batch)

    for kind in ("full", "ht"):
        method, towers = KINDS[kind]
        whole, results = runs[kind]
        options = DUAL | {"method": method, "train_towers": towers, "trainer": QUICK}
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_batch", interrupt)
            with pytest.raises(KeyboardInterrupt):
                train_pairs(pairs, tiny_model, tmp_path / kind, **options)
        changed = options | {"head": "mlp-8"}
        with pytest.raises(ResumeError, match="head was 'mlp-16' and is 'mlp-8' now"):
            train_pairs(pairs, tiny_model, tmp_path / kind, resume=True, **changed)
        resumed = train_pairs(pairs, tiny_model, tmp_path / kind, resume=True, **options)
        assert resumed["before"] == results["before"]
        assert resumed["after"] == results["after"]
        file = "towers.safetensors"
        assert (whole / file).read_bytes() == (tmp_path / kind / file).read_bytes()


def test_the_alarm_fires_where_full_training_collapses_and_not_where_it_does_not(
    runs, pairs, tiny_model, tmp_path, capsys
):
    """The published way, one rate for all without warm-up or clipping, at a rate too high."""
    trainer = TrainerConfig(
        epochs=4, batch_size=10, lr=1.0, workers=0, warmup_steps=0, clip_grad_norm=0.0, patience=0
    )
    results = train_pairs(
        pairs, tiny_model, tmp_path / "run", method="none", train_towers="both",
        tower_lr_scale=1.0, decay_all=True, trainer=trainer, **DUAL,
    )  # fmt: skip
    found = results["collapse"]
    assert (found["state"], found["best_epoch_state"]) == ("collapsed", "collapsed")
    assert [(alarm["epoch"], alarm["recovered"]) for alarm in found["alarms"]] == [(2, None)]
    said = capsys.readouterr().out
    assert said.count("WARNING: the run has collapsed") == 1
    assert said.count("WARNING: the run ended collapsed, as was told after epoch 2.") == 1
    learning = {"state": "learning", "best_epoch_state": "learning", "alarms": []}
    assert all(good["collapse"] == learning for _, good in runs.values())


def test_a_run_that_ends_collapsed_after_a_good_start_says_which_weights_are_kept(
    pairs, tiny_model, tmp_path, capsys, monkeypatch
):
    """Its rate is a thousand times higher from the sixth of seven epochs on."""
    rise = torch.optim.lr_scheduler.LambdaLR
    monkeypatch.setattr(
        "fastht.tasks.training.trainer.make_schedule",
        lambda optimizer, *_: rise(optimizer, lambda step: 0.1 if step < 15 else 100.0),
    )
    trainer = dataclasses.replace(QUICK, epochs=7, clip_grad_norm=0.0, patience=0)
    results = train_pairs(
        pairs, tiny_model, tmp_path / "run", method="none", train_towers="both", trainer=trainer,
        **DUAL,
    )  # fmt: skip
    found = results["collapse"]
    assert (found["state"], found["best_epoch_state"]) == ("collapsed", "learning")
    assert [alarm["epoch"] for alarm in found["alarms"]] == [7]
    assert results["best_epoch"] <= 5
    ended = f"The weights that are kept are of epoch {results['best_epoch']}, before that."
    assert ended in capsys.readouterr().out
    assert results["after"]["val_loss"] < results["before"]["val_loss"]


def test_a_slow_start_is_no_collapse(pairs, tiny_model, tmp_path, capsys):
    """The rate rises from nothing: two epochs at the loss of guessing, after which it learns."""
    trainer = TrainerConfig(epochs=8, batch_size=10, lr=1e-3, workers=0, warmup_epochs=7)
    options = DUAL | {"method": "none", "trainer": trainer}
    results = train_pairs(pairs, tiny_model, tmp_path / "run", **options)
    losses = [float(row["train_loss"]) for row in rows_of(tmp_path / "run" / "history.csv")]
    assert min(losses[:2]) > 0.99 * math.log(10) > losses[-1] + 0.1
    assert results["collapse"]["alarms"] == []
    assert results["collapse"]["state"] == "learning"
    assert "WARNING: the run" not in capsys.readouterr().out


def test_texts_of_a_folder_train_and_a_moved_one_is_one_error(pairs, tiny_model, tmp_path):
    save_bert(tmp_path / "bert")
    name = f"local-dir:{tmp_path / 'bert'}"
    out = tmp_path / "run"
    lora = {"method": "lora-text", "lora_rank": 2} if _has_peft() else {"method": "none"}
    results = train_pairs(
        pairs, tiny_model, out, text=name, head="mlp-8", trainer=QUICK, caption_part="end", **lora
    )
    assert results["after"]["val_loss"] < results["before"]["val_loss"]
    assert results["encoder"]["text_context"] == 20
    (tmp_path / "bert").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"bert has no config\.json: give the folder"):
        load_clip(out, "unused", "unused", None)


def _has_peft():
    import importlib.util

    return importlib.util.find_spec("peft") is not None


def test_tags_and_positives_work_behind_heads(pairs, tiny_model, tmp_path):
    command = ["train", "--data", str(pairs), "--model", tiny_model, "--pretrained", "none"]
    command += ["--text", "tiny-bert", "--head", "mlp-16", "--method", "none", "--lr", "1e-2"]
    command += ["--semantic", "fastht", "--tag-graph", "tokens", "--tags", "captions"]
    command += ["--positives", "label", "--epochs", "3", "--batch-size", "10", "--workers", "0"]
    assert main([*command, "--val-fraction", "0.265", "--out", str(tmp_path / "run")]) == 0
    history = rows_of(tmp_path / "run" / "history.csv")
    assert float(history[-1]["val_total_loss"]) < float(history[0]["val_total_loss"])
    command = ["retrieve", "--run", str(tmp_path / "run"), "--workers", "0"]
    assert main([*command, "--out", str(tmp_path / "retrieve")]) == 0
    assert (
        "plain_text_image_to_text_recall@1" in read(tmp_path / "retrieve" / "results.json")["after"]
    )


def test_random_cuts_are_parts_of_larger_images_and_evaluation_has_none(
    pairs, tiny_model, tmp_path
):
    pixels = torch.arange(4 * 3 * 10 * 10.0).reshape(4, 3, 10, 10)
    torch.manual_seed(0)
    cuts = [cut_at_random(pixels, (8, 8)) for _ in range(20)]
    corners = {tuple(cut[:, 0, 0, 0].tolist()) for cut in cuts}
    assert len(corners) > 10
    for cut in cuts:
        for image, part in zip(pixels, cut, strict=True):
            top, left = divmod(int(part[0, 0, 0] - image[0, 0, 0]), 10)
            assert torch.equal(part, image[:, top : top + 8, left : left + 8])
    transform = build_clip(tiny_model, "none")[1]
    larger, size = with_margin(transform, 0.125)
    assert (size, larger.crop, larger.resize) == ((32, 32), (36, 36), 36)
    results = train_pairs(
        pairs, tiny_model, tmp_path / "run", method="none", crop_margin=0.125, trainer=QUICK, **DUAL
    )
    plain = train_pairs(pairs, tiny_model, tmp_path / "plain", method="none", trainer=QUICK, **DUAL)
    assert results["before"] == plain["before"]
    assert results["after"] != plain["after"]
    with pytest.raises(ValueError, match="--crop-margin needs a model"):
        with_margin(torch.nn.Identity(), 0.1)


@pytest.mark.slow
def test_an_exported_run_reads_texts_by_its_own_tokenizer(runs, pairs, tmp_path):
    """And its file names no folder of the machine."""
    out, _ = runs["ht"]
    file = tmp_path / "both.pt2"
    assert main(["export", str(out), "--out", str(file)]) == 0
    about = load_exported(file).metadata
    assert (about["tokenizer"], about["tokenizer_of"]) == ("tiny-bert", "transformers")
    assert about["trained_on"] == pairs.name
    images = [str(path) for path in sorted(pairs.parent.glob("*.png"))[:4]]
    rows = {}
    for source in (out, file):
        folder = tmp_path / source.stem
        options = ["--classes", "a dark cyst", "a bright mass\u2603", "--out", str(folder)]
        assert main(["predict", str(source), *images, *options]) == 0
        rows[source] = rows_of(folder / "predictions.csv")
    for one, other in zip(*rows.values(), strict=True):
        p = "p(a dark cyst)"
        assert float(one[p]) == pytest.approx(float(other[p]), rel=1e-3)
    assert len({row["p(a dark cyst)"] for row in rows[out]}) > 1


def test_the_items_of_kept_images_name_their_files():
    class Data:
        def file(self, i):
            return f"{i}.png"

    kept = PooledImages(Data(), torch.eye(3))
    assert (len(kept), kept.file(2), kept[1]["index"]) == (3, "2.png", 1)
    assert torch.equal(kept[1]["image"], torch.tensor([0.0, 1.0, 0.0]))
