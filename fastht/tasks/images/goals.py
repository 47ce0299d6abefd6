"""What segmentation and classification learn: the paper's losses, by MONAI, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastht.tasks.scores.classification import classification_scores
from fastht.tasks.scores.classification import resampled as resampled_classification
from fastht.tasks.scores.intervals import weighted_means
from fastht.tasks.scores.native import Tolerances
from fastht.tasks.scores.segmentation import image_scores, score_names, summarise

# MONAI takes longer to import than all else: it is, where something is learnt or scored.
if find_spec("monai") is None:
    raise ModuleNotFoundError("no module monai: pip install 'fastht[tasks]'", name="monai")


class SegmentationGoal:
    """Dice and cross-entropy on masks, chosen by the mean Dice. See :class:`supervised.Goal`.

    What is outside ``batch["inside"]``, the border of a letterbox, counts in nothing.

    Args:
        tolerances: of the final scoring.
    """

    monitor = "dice"

    def __init__(self, tolerances: Tolerances | None = None) -> None:
        from monai.losses import DiceCELoss, DiceLoss

        self.tolerances = tolerances or Tolerances()
        # squared_pred and the small smoothing are the published code's.
        options: dict[str, Any] = {"squared_pred": True, "smooth_nr": 1e-8, "smooth_dr": 1e-8}
        self._loss = DiceCELoss(to_onehot_y=True, softmax=True, **options)
        self._dice = DiceLoss(**options)

    def loss(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return the loss of logits ``[B, 2, H, W]`` against ``batch["mask"]``."""
        mask, inside = batch["mask"], batch.get("inside")
        if inside is None:
            return self._loss(logits, mask[:, None])
        weight = inside[:, None].to(logits.dtype)
        true = F.one_hot(mask, logits.shape[1]).movedim(-1, 1)
        dice = self._dice(logits.softmax(dim=1) * weight, true * weight)
        # The mean of each image's own mean, so that narrow images count as much as others.
        entropy = F.cross_entropy(logits, mask, reduction="none") * weight[:, 0]
        return dice + (entropy.sum((1, 2)) / weight.sum((1, 2, 3))).mean()

    def judge(self, logits: Tensor, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return Dice, IoU and distances of each image."""
        predicted = logits.argmax(dim=1)
        if (inside := batch.get("inside")) is not None:
            predicted = predicted * inside
        return image_scores(predicted, batch["mask"])

    def summarise(self, judged: dict[str, list[Any]]) -> dict[str, float]:
        """Return means, standard deviations and counts over all images."""
        return summarise(judged)

    def resampled(self, judged: dict[str, list[Any]], weights: Tensor) -> dict[str, Tensor]:
        """Return the means over the images in each of some resamples."""
        names = score_names(judged)
        values = torch.tensor([judged[name] for name in names], dtype=torch.float64)
        return dict(zip(names, weighted_means(values.T, weights).T, strict=True))


class ClassificationGoal:
    """Focal loss on classes, chosen by the accuracy. See :class:`supervised.Goal`.

    Args:
        classes: their names; without them there are no scores of single classes.
    """

    monitor = "accuracy"

    def __init__(self, classes: Sequence[str] | None = None) -> None:
        from monai.losses import FocalLoss

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
