"""What runs of open_clip's training program on a tiny model need: data, options, a measure."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
EPOCHS = 2


def prepare(folder: Path, image: Any) -> None:
    """Leave 16 images, their captions and a model in a folder; ``image``: PIL's module."""
    generator = random.Random(0)
    with (folder / "pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "title"])
        for index in range(16):
            pixels = generator.randbytes(32 * 32 * 3)
            image.frombytes("RGB", (32, 32), pixels).save(folder / f"{index}.png")
            table.writerow([folder / f"{index}.png", f"finding {index}"])
    model = {"model_cfg": MODEL, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(model))


def options(folder: Path, name: str, *more: str) -> list[str]:
    """Return the command line of a run; what stands in ``more`` comes last and so counts."""
    return [
        "--model", f"local-dir:{folder}", "--train-data", str(folder / "pairs.csv"),
        "--csv-separator", ",", "--logs", str(folder), "--name", name, "--workers", "0",
        "--batch-size", "8", "--epochs", str(EPOCHS), "--warmup", "1", "--lr", "1e-2",
        "--wd", "0.1", "--eps", "1e-3", "--precision", "fp32", "--aug-cfg", "scale=(1.0,1.0)",
        *more,
    ]  # fmt: skip


def result(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the weights of a run's last checkpoint."""
    file = folder / name / "checkpoints" / f"epoch_{EPOCHS}.pt"
    weights: dict[str, Tensor] = torch.load(file, weights_only=False)["state_dict"]
    return {key.removeprefix("module."): tensor for key, tensor in weights.items()}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return how far the up-projections, which start at zero, are apart, in parts of their norm.

    Adam's epsilon is large in these runs: else its steps are of one size where the gradient is but
    rounding, too.
    """
    names = [name for name in one if name.endswith("ht.up.weight")]
    assert names
    a, b = (torch.cat([state[name].flatten() for name in names]) for state in (one, other))
    return float((a - b).norm() / b.norm())
