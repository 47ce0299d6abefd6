"""What segmentation and classification learn: the paper's losses, by MONAI, and their scores."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import DiceCELoss, FocalLoss
from torch import Tensor

from fastht.tasks.scores.classification import classification_scores
from fastht.tasks.scores.classification import resampled as resampled_classification
from fastht.tasks.scores.intervals import weighted_means
from fastht.tasks.scores.segmentation import SCORES, image_scores, summarise


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

    def resampled(self, judged: dict[str, list[Any]], weights: Tensor) -> dict[str, Tensor]:
        """Return the means over the images in each of some resamples."""
        values = torch.tensor([judged[name] for name in SCORES], dtype=torch.float64)
        return dict(zip(SCORES, weighted_means(values.T, weights).T, strict=True))


class ClassificationGoal:
    """Focal loss on classes, chosen by the accuracy. See :class:`supervised.Goal`."""

    monitor = "accuracy"

    def __init__(self) -> None:
        self._loss = FocalLoss(to_onehot_y=True)

    def loss(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return the loss of logits ``[B, classes]`` against ``batch["label"]``."""
        return self._loss(logits, batch["label"][:, None])

    def judge(self, logits: Tensor, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the probabilities and the label of each image."""
        return {
            "probabilities": logits.softmax(dim=1).tolist(),
            "label": batch["label"].tolist(),
        }

    def summarise(self, judged: dict[str, list[Any]]) -> dict[str, float]:
        """Return accuracy, recall, precision, F1 and AUC over all images."""
        probabilities = torch.tensor(judged["probabilities"])
        return classification_scores(probabilities, torch.tensor(judged["label"]))

    def resampled(self, judged: dict[str, list[Any]], weights: Tensor) -> dict[str, Tensor]:
        """Return the same scores in each of some resamples."""
        probabilities = torch.tensor(judged["probabilities"])
        return resampled_classification(probabilities, torch.tensor(judged["label"]), weights)
