"""What the scoring of a model leaves: a table of all images, masks, overlays."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastht.data.masks import read_mask
from fastht.data.task_dataset import TaskDataset
from fastht.files import write_atomically
from fastht.tasks.images.goals import SegmentationGoal
from fastht.tasks.images.native import NativeSegmentation, spacing_sentence
from fastht.tasks.images.supervised import Scores, SupervisedTask
from fastht.tasks.results.overlays import Overlay, draw_overlays
from fastht.tasks.results.shown import Shown
from fastht.tasks.results.tables import PREDICTIONS_NAME

MASKS_NAME = "masks"
OVERLAYS_NAME = "overlays.png"
_SHOWN = 12  # images in the overlays


def leave_outcome(
    task: SupervisedTask,
    data: TaskDataset,
    classes: Sequence[str],
    out: Path,
    title: str,
    shown: Shown,
) -> tuple[Scores, dict[str, list[Any]]]:
    """Score a model on a data set and leave what it predicts; every process calls it.

    Segmentation scores at the size of each image too. It leaves a PNG of each predicted mask at
    that size, and overlays of images from the worst Dice to the best. What classification leaves
    beside the table is drawn by :func:`class_outcome.draw_classes`.

    Args:
        task: holds the model and the goal.
        data: samples without augmentation.
        classes: names of the classes.
        out: the folder, made if needed.
        title: of the pictures.
        shown: what they are of.

    Returns:
        The scores, and the entries of all images in the order of the data.
    """
    folder = out / MASKS_NAME
    goal = task.goal
    if isinstance(goal, SegmentationGoal):
        folder.mkdir(parents=True, exist_ok=True)
        goal = NativeSegmentation(data, folder, goal)
    out.mkdir(parents=True, exist_ok=True)
    scores, judged = task.score(data, goal)
    task.accelerator.wait_for_everyone()
    if task.accelerator.is_main_process:
        leave_predictions(out / PREDICTIONS_NAME, data, classes, judged)
        if isinstance(goal, NativeSegmentation):
            if known := spacing_sentence(judged):
                print(known, flush=True)
            dice = judged["dice_native"]
            _draw_masks(data, dice, folder, out / OVERLAYS_NAME, title, shown)
    return scores, judged


def leave_predictions(
    path: Path, data: TaskDataset, classes: Sequence[str], judged: dict[str, list[Any]]
) -> None:
    """Write a row an image as CSV; the patient is empty where it is not known."""
    rows = []
    told = [*judged]
    if not any(judged.get("spacing", ())):
        told = [name for name in told if not name.endswith("mm") and name != "spacing"]
    for i, case in enumerate(data.cases):
        row = {"file": case.image, "patient": case.patient or ""}
        if "probabilities" in judged:
            probabilities = judged["probabilities"][i]
            best = max(range(len(classes)), key=probabilities.__getitem__)
            row |= {"label": classes[judged["label"][i]], "predicted": classes[best]}
            row |= {f"p({name})": p for name, p in zip(classes, probabilities, strict=True)}
        else:
            row |= {name: judged[name][i] for name in told}
        rows.append(row)
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]))
    table.writeheader()
    table.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _draw_masks(
    data: TaskDataset,
    dice: Sequence[float],
    folder: Path,
    path: Path,
    title: str,
    shown: Shown,
) -> None:
    """Draw images evenly spaced from the worst Dice to the best, at their own size."""
    order = sorted(range(len(data)), key=dice.__getitem__)
    count = min(_SHOWN, len(order))
    places = torch.linspace(0, len(order) - 1, count).round().int().tolist()
    items = []
    for index in (order[place] for place in places):
        name = data.cases[index].name
        with Image.open(folder / f"{name}.png") as picture:
            predicted = torch.from_numpy(np.array(picture)) // 255
        items.append(
            Overlay(
                name=name,
                image=data.picture(index),
                truth=torch.from_numpy(read_mask(data.cases[index])),
                prediction=predicted,
                dice=dice[index],
            )
        )
    draw_overlays(path, items, title, shown=shown)
