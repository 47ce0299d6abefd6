"""What segmentation and classification learn: the paper's losses, by MONAI, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.losses import DiceCELoss, FocalLoss
from torch import Tensor

from fastht.tasks.scores.classification import classification_scores
from fastht.tasks.scores.classification import resampled as resampled_classification
from fastht.tasks.scores.segmentation import image_scores, summarise


class SegmentationGoal:
    """Dice and cross-entropy on masks, chosen by the mean Dice. See :class:`supervised.Goal`."""

    monitor = "dice"

    def __init__(self) -> None:
        # squared_pred and the small smoothing are the published code's.
        self._loss = DiceCELoss(
            to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=1e-8, smooth_dr=1e-8
        )

    def loss(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return the loss of logits ``[B, 2, H, W]`` against ``batch["mask"]``."""
        return self._loss(logits, batch["mask"][:, None])

    def judge(self, logits: Tensor, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return Dice, IoU and distances of each image."""
        return image_scores(logits.argmax(dim=1), batch["mask"])

    def summarise(self, judged: dict[str, list[Any]]) -> dict[str, float]:
        """Return means, standard deviations and counts over all images."""
        return summarise(judged)


class ClassificationGoal:
    """Focal loss on classes, chosen by the accuracy. See :class:`supervised.Goal`.

    Args:
        classes: their names; without them there are no scores of single classes.
    """

    monitor = "accuracy"

    def __init__(self, classes: Sequence[str] | None = None) -> None:
        self.classes = classes
        self._loss = FocalLoss(to_onehot_y=True)

    def loss(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return the loss of logits ``[B, classes]`` against ``batch["label"]``."""
        return self._loss(logits, batch["label"][:, None])

    def judge(self, logits: Tensor, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the probabilities and the label of each image."""
        return {
            # In float32 sure predictions would all be 1, and no temperature could tell them apart.
            "probabilities": logits.double().softmax(dim=1).tolist(),
            "label": batch["label"].tolist(),
        }

    def summarise(self, judged: dict[str, list[Any]]) -> dict[str, float]:
        """Return the scores of classification and calibration over all images."""
        return classification_scores(*_tensors(judged), self.classes)

    def resampled(self, judged: dict[str, list[Any]], weights: Tensor) -> dict[str, Tensor]:
        """Return the same scores in each of some resamples."""
        return resampled_classification(*_tensors(judged), weights, self.classes)


def _tensors(judged: dict[str, list[Any]]) -> tuple[Tensor, Tensor]:
    return torch.tensor(judged["probabilities"], dtype=torch.float64), torch.tensor(judged["label"])
