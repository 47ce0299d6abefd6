"""Runs of tasks with made-up scores, as dicts and as folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastht.files import write_json


def segmentation(dice: float, *, before: float = 0.1, **fields: Any) -> dict[str, Any]:
    """A run of fastht segment; hd95, empty_predictions and such may be given too."""
    scores = {"dice": dice, "dice_std": 0.1, "iou": dice - 0.1, "hd95": 8.0, "hd95_std": 2.0}
    counts = {"images": 50, "empty_predictions": 0, "empty_truths": 0, "without_distance": 0}
    after = scores | counts
    after |= {name: fields.pop(name) for name in list(fields) if name in after}
    return _run("segment", {"dice": before, "dice_std": 0.2}, after, fields)


def classification(accuracy: float, *, auc: float = 0.9, **fields: Any) -> dict[str, Any]:
    """A run of fastht classify."""
    before, after = {"accuracy": 0.5, "auc": math.nan}, {"accuracy": accuracy, "auc": auc}
    return _run("classify", before, after, fields)


def _run(task: str, before: dict, after: dict, fields: dict[str, Any]) -> dict[str, Any]:
    made = {
        "task": task,
        "method": "ht",
        "percent": 100.0,
        "seed": 0,
        "model": "ViT-B-16/openai",
        "data": "sets/BUSI",
        "trainable_parameters": 1_200_000,
        "train_images": 400,
        "test_images": 50,
        "best_epoch": 7,
        "epochs": 10,
        "seconds": 60.0,
        "before": before,
        "after": after,
    }
    assert fields.keys() <= made.keys() | {"trained_on", "prompts", "split", "folder"}
    return made | fields


def leave(folder: Path, run: dict[str, Any]) -> Path:
    """Write a run's results.json; return its folder."""
    folder.mkdir(parents=True)
    write_json(folder / "results.json", run)
    return folder
