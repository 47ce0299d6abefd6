"""What the scoring of a classifier leaves beside its scores: chance, calibration, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastht.data.task_dataset import TaskDataset
from fastht.tasks.images.supervised import SupervisedTask
from fastht.tasks.results.class_pictures import (
    ReliabilityCurve,
    ReliabilityPanel,
    draw_confusion,
    draw_reliability,
    draw_roc,
)
from fastht.tasks.results.shown import Shown
from fastht.tasks.scores.calibration import (
    Temperature,
    apply_temperature,
    calibration_scores,
    describe_calibration,
    fit_temperature,
    reliability,
)
from fastht.tasks.scores.classification import (
    chance_accuracy,
    confusion_matrix,
    prediction_warnings,
    roc_curves,
)

ROC_NAME = "roc.png"
CONFUSION_NAME = "confusion.png"
RELIABILITY_NAME = "reliability.png"


@dataclass(frozen=True)
class Fitted:
    """A temperature, or why there is none.

    Attributes:
        temperature: of images that are not scored.
        note: what it was fitted on, or why it was not.
    """

    temperature: Temperature | None
    note: str


def fit_on(probabilities: Tensor, labels: Tensor, side: str) -> Fitted:
    """Fit a temperature on images that are not to be scored.

    Args:
        probabilities: ``[n, classes]``; may be of no image.
        labels: ``[n]``, class indices.
        side: what the images are called.
    """
    if not len(labels):
        return Fitted(None, f"no temperature fitted: {side} has no image")
    found = fit_temperature(probabilities, labels)
    images = f"{found.images:,} image{'' if found.images == 1 else 's'}"
    return Fitted(found, f"temperature fitted on {images} of {side}")


def refit(record: Mapping[str, Any]) -> Fitted:
    """Return the temperature that the ``calibration`` of a ``results.json`` holds."""
    value = record["temperature"]
    if value is None:
        return Fitted(None, str(record["note"]))
    temperature = Temperature(value, record["fitted_images"], record["at_bound"])
    return Fitted(temperature, str(record["note"]))


def describe_classes(
    versions: Mapping[str, Tensor],
    labels: Tensor,
    classes: Sequence[str],
    fitted: Mapping[str, Fitted],
) -> dict[str, Any]:
    """Return what ``results.json`` holds on classes beside scores, as plain JSON types.

    Args:
        versions: probabilities ``[n, classes]`` by the name of the model's version.
        labels: ``[n]``, class indices.
        classes: their names.
        fitted: the temperature of each version.

    Returns:
        ``chance``, ``calibration`` and ``confusion``, rows of the true classes, by version, and
        ``warnings``.
    """
    several = len(versions) > 1
    return {
        "chance": chance_accuracy(labels, classes),
        "confusion": {v: confusion_matrix(p, labels).tolist() for v, p in versions.items()},
        "calibration": {
            version: describe_calibration(
                p, labels, fitted[version].temperature, fitted[version].note
            )
            for version, p in versions.items()
        },
        "warnings": [
            f"{f'{version}: ' if several else ''}{warning}"
            for version, p in versions.items()
            for warning in prediction_warnings(p, labels, classes)
        ],
    }


def leave_classes(
    task: SupervisedTask,
    judged: Mapping[str, list[Any]],
    classes: Sequence[str],
    fitted: Fitted,
    out: Path,
    title: str,
    shown: Shown,
) -> dict[str, Any]:
    """Draw the pictures of one model and return what :func:`describe_classes` does.

    Args:
        task: whose main process draws.
        judged: entries of all images.
        classes: names of the classes.
        fitted: the temperature.
        out: the folder.
        title: of the pictures.
        shown: what they are of.
    """
    p, labels = judged_classes(judged)
    versions, temperatures = {"after": p}, {"after": fitted}
    if task.accelerator.is_main_process:
        draw_classes(versions, labels, classes, temperatures, out, title, shown)
    return describe_classes(versions, labels, classes, temperatures)


def fit_on_side(task: SupervisedTask, data: TaskDataset, side: str) -> Fitted:
    """Fit a temperature on a side of the data; every process calls it."""
    return fit_on(*judged_classes(task.score(data)[1]), side)


def draw_classes(
    versions: Mapping[str, Tensor],
    labels: Tensor,
    classes: Sequence[str],
    fitted: Mapping[str, Fitted],
    out: Path,
    title: str,
    shown: Shown,
) -> None:
    """Draw ROC curves, confusion matrices and reliability curves into a folder.

    Args:
        versions: probabilities ``[n, classes]`` by what the version of the model is called.
        labels: ``[n]``, class indices.
        classes: their names.
        fitted: the temperature of each version.
        out: the folder.
        title: of the pictures.
        shown: what they are of.
    """
    drawn = [1] if len(classes) == 2 else range(len(classes))
    curves, areas = {}, {}
    for version, p in versions.items():
        found = roc_curves(p, labels)
        curves[version] = {classes[index]: curve for index, curve in found.items()}
        areas[version] = {classes[index]: _area(found.get(index)) for index in drawn}
    draw_roc(out / ROC_NAME, curves, areas, title, shown)
    matrices = {version: confusion_matrix(p, labels) for version, p in versions.items()}
    draw_confusion(out / CONFUSION_NAME, matrices, classes, title, shown)
    panels = []
    for version, p in versions.items():
        temperature, note = fitted[version].temperature, fitted[version].note
        value = None if temperature is None else temperature.value
        mended = None if value is None else _curve(apply_temperature(p, value), labels)
        panels.append(ReliabilityPanel(version, _curve(p, labels), mended, value, note))
    draw_reliability(out / RELIABILITY_NAME, panels, title, shown)


def judged_classes(judged: Mapping[str, list[Any]]) -> tuple[Tensor, Tensor]:
    """Return probabilities ``[n, classes]``, float64, and labels ``[n]`` of judged images."""
    return torch.tensor(judged["probabilities"], dtype=torch.float64), torch.tensor(judged["label"])


def _area(curve: tuple[Tensor, Tensor] | None) -> float:
    return torch.nan if curve is None else float(torch.trapezoid(curve[1], curve[0]))


def _curve(p: Tensor, labels: Tensor) -> ReliabilityCurve:
    bins = reliability(p, labels)
    return ReliabilityCurve(
        bins.confidence,
        bins.accuracy,
        p.max(dim=1).values.tolist(),
        calibration_scores(p, labels)["ece"],
    )
