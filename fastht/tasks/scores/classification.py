"""How well classes are told apart: accuracy, recall, precision, F1, AUC by torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import accuracy, auroc, f1_score, precision, recall, roc

COUNTED: dict[str, Callable[..., Tensor]] = {
    "recall": recall,
    "precision": precision,
    "f1": f1_score,
}


def classification_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Score predicted classes over all images.

    Args:
        probabilities: ``[n, classes]``, rows that sum to 1.
        labels: ``[n]``, class indices.

    Returns:
        ``accuracy``, ``recall``, ``precision``, ``f1`` and ``auc``, in [0, 1]. With two classes the
        second one is the positive one. With more, all but the accuracy are unweighted means over
        the classes that occur, and AUC is of one class against the rest. AUC is NaN where a class
        does not occur, for then it is not defined.
    """
    classes = probabilities.shape[1]
    task: dict[str, Any] = {"task": "multiclass", "num_classes": classes}
    predicted = probabilities.argmax(dim=1)
    scores = {"accuracy": accuracy(predicted, labels, average="micro", **task).item()}
    if classes == 2:
        for name, score in COUNTED.items():
            scores[name] = score(predicted, labels, task="binary").item()
    else:
        for name, score in COUNTED.items():
            scores[name] = score(predicted, labels, average="macro", **task).item()
    if len(labels.unique()) < classes:
        area: Tensor | None = None
    elif classes == 2:
        area = auroc(probabilities[:, 1], labels, task="binary")
    else:
        area = auroc(probabilities, labels, average="macro", **task)
    scores["auc"] = math.nan if area is None else area.item()
    return scores


def roc_curves(probabilities: Tensor, labels: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Return false and true positive rates of each class against the rest.

    Classes without images of their own or of others have no curve. With two classes only the
    second one has one: that of the first is its mirror image.

    Args:
        probabilities: ``[n, classes]``.
        labels: ``[n]``, class indices.
    """
    classes = probabilities.shape[1]
    curves = {}
    for index in [1] if classes == 2 else range(classes):
        own = (labels == index).long()
        if 0 < int(own.sum()) < len(own):
            false, true, _ = roc(probabilities[:, index], own, task="binary")
            curves[index] = (torch.as_tensor(false), torch.as_tensor(true))
    return curves
