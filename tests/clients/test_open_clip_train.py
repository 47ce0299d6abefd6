"""open_clip's training program with adapters: what is saved, what is equal, what is refused."""

from __future__ import annotations

import csv
import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastht

open_clip = pytest.importorskip("open_clip")
program = pytest.importorskip("open_clip_train.main", exc_type=ImportError)

from fastht.clients import open_clip_train  # noqa: E402

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
Run = Callable[..., "tuple[dict[str, Tensor], Path]"]


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Train a tiny model; return its last checkpoint's weights and its folder."""
    image = pytest.importorskip("PIL.Image")
    generator = random.Random(0)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "title"])
        for index in range(16):
            pixels = generator.randbytes(32 * 32 * 3)
            image.frombytes("RGB", (32, 32), pixels).save(tmp_path / f"{index}.png")
            table.writerow([tmp_path / f"{index}.png", f"finding {index}"])
    model = {"model_cfg": MODEL, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(model))

    def train(name: str, *more: str, adapters: bool = True) -> tuple[dict[str, Tensor], Path]:
        arguments = [
            "--model", f"local-dir:{tmp_path}", "--train-data", str(tmp_path / "pairs.csv"),
            "--csv-separator", ",", "--logs", str(tmp_path), "--name", name, "--workers", "0",
            "--batch-size", "8", "--epochs", "2", "--warmup", "1", "--lr", "1e-2", "--wd", "0.1",
            "--eps", "1e-3", "--precision", "fp32",
            "--aug-cfg", "scale=(1.0,1.0)", *more,
        ]  # fmt: skip
        if adapters:
            open_clip_train.main(["--ht", "dropout=0", *arguments])
        else:
            program.main(arguments)
        saved = torch.load(tmp_path / name / "checkpoints" / "epoch_2.pt", weights_only=False)
        return saved["state_dict"], tmp_path / name

    return train


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return how far the up-projections, which start at zero, are apart, in parts of their norm.

    Adam's epsilon is large in these runs: else its steps are of one size where the gradient is but
    rounding, too.
    """
    names = [name for name in one if name.endswith(".ht.up.weight")]
    assert len(names) == 2
    ours, theirs = (torch.cat([run[name].flatten() for name in names]) for run in (one, other))
    assert ours.any()
    return float((ours - theirs).norm() / theirs.norm())


def test_checkpoints_hold_the_base_and_the_adapters(run: Run, tmp_path: Path) -> None:
    weights, folder = run("run")
    plain, _ = run("plain", "--lr", "0", "--wd", "0", adapters=False)
    base = {name: tensor for name, tensor in weights.items() if ".ht." not in name}
    assert base.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in base.items())
    assert sum("up.weight" in name and bool(weights[name].any()) for name in weights) == 2

    model = open_clip.create_model(f"local-dir:{tmp_path}")
    model.load_state_dict(plain)
    fastht.load_adapter(model, folder / "adapter")
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_what_must_be_equal_is(run: Run, tmp_path: Path) -> None:
    weights, _ = run("run")
    again, _ = run("again")
    assert _difference(again, weights) == 0
    for name, *options in (
        ("checkpointed", "--grad-checkpointing"),
        ("accumulated", "--batch-size", "4", "--accum-freq", "2"),
        ("blocked", "--ht-loss", "fastht"),
    ):
        other, _ = run(name, *options)
        assert _difference(other, weights) < 1e-2, name
    other, _ = run("hotter", "--lr", "2e-2")
    assert _difference(other, weights) > 0.1


def test_resuming(run: Run, tmp_path: Path) -> None:
    """open_clip keeps no state of random numbers, so nothing random may be left in the second."""
    weights, folder = run("run", "--batch-size", "16")
    first = folder / "checkpoints" / "epoch_1.pt"
    resumed, _ = run("resumed", "--batch-size", "16", "--resume", str(first))
    assert _difference(resumed, weights) < 1e-2
    assert _difference(resumed, torch.load(first, weights_only=False)["state_dict"]) > 0.1


def test_siglip_and_scripted(run: Run) -> None:
    own, _ = run("siglip", "--siglip")
    other, _ = run("blocked", "--siglip", "--ht-loss", "fastht")
    assert _difference(own, other) < 1e-2
    # One batch an epoch, since TorchScript draws a dropout's random numbers at zero, too.
    eager, _ = run("eager", "--batch-size", "16")
    scripted, _ = run("scripted", "--batch-size", "16", "--torchscript")
    assert _difference(scripted, eager) < 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ht", "dropout"], "give FIELD=VALUE"),
        (["--ht", "variant=mona"], "choose one of"),
        (["--ht", "depth=3"], "no field 'depth'"),
        (["--force-patch-dropout", "0.5"], "force_patch_dropout=0.0"),
    ],
)
def test_refusals_leave_the_program_as_it_was(run: Run, options: list[str], message: str) -> None:
    factories = program.create_model_and_transforms, program.create_loss
    with pytest.raises((SystemExit, ValueError), match=message):
        run("refused", *options)
    assert (program.create_model_and_transforms, program.create_loss) == factories
