"""How well masks agree: Dice, IoU and surface distances by MONAI, image by image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
)
from torch import Tensor

OVERLAPS = ("dice", "iou")
DISTANCES = ("hd95", "asd")
SCORES = (*OVERLAPS, *DISTANCES)


def image_scores(prediction: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """Compare predicted masks with true ones, each image by itself.

    Args:
        prediction: ``[B, H, W]``, 0 or 1.
        truth: ``[B, H, W]``, 0 or 1.

    Returns:
        For each image: ``dice`` and ``iou`` in [0, 1]; ``hd95``, the 95th percentile of the
        Hausdorff distance, and ``asd``, the average distance of the predicted surface to the true
        one, in pixels; the areas ``predicted_pixels`` and ``true_pixels``. Two empty masks agree
        (1); an empty and a filled one do not (0). No distance is defined to an empty mask: NaN.
    """
    scores: dict[str, list[float]] = {name: [] for name in SCORES}
    areas = prediction.flatten(1).sum(1).tolist(), truth.flatten(1).sum(1).tolist()
    for i, (predicted, true) in enumerate(zip(*areas, strict=True)):
        if not predicted or not true:
            agreement = float(predicted == true)
            found = [agreement, agreement, math.nan, math.nan]
        else:
            found = _filled(prediction[i : i + 1], truth[i : i + 1])
        for name, value in zip(SCORES, found, strict=True):
            scores[name].append(value)
    return scores | {"predicted_pixels": areas[0], "true_pixels": areas[1]}


def _filled(prediction: Tensor, truth: Tensor) -> list[float]:
    """Return the scores of one image, both of whose masks hold something."""
    a, b = (torch.stack([1 - m, m], dim=1).float() for m in (prediction.int(), truth.int()))
    with warnings.catch_warnings():
        # MONAI also looks at the background, which is empty where a mask fills the image.
        warnings.filterwarnings("ignore", category=UserWarning, module="monai")
        warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
        found = (
            compute_dice(a, b, include_background=False),
            compute_iou(a, b, include_background=False),
            compute_hausdorff_distance(a, b, include_background=False, percentile=95),
            compute_average_surface_distance(a, b, include_background=False),
        )
    return [score.item() for score in found]


def summarise(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return means and standard deviations over the images, and what they leave out.

    Args:
        scores: of all images, as :func:`image_scores` gives them.

    Returns:
        ``{score}`` and ``{score}_std`` for each score, distances over the images for which they
        are defined; ``images``; ``empty_predictions``, of images whose true mask is not empty;
        ``empty_truths``; ``without_distance``, the images that ``hd95`` and ``asd`` leave out.
    """
    result: dict[str, float] = {}
    for name in SCORES:
        values = torch.tensor(scores[name], dtype=torch.float64)
        defined = values[~values.isnan()]
        result[name] = defined.mean().item() if len(defined) else math.nan
        result[f"{name}_std"] = defined.std(correction=0).item() if len(defined) else math.nan
    areas = list(zip(scores["predicted_pixels"], scores["true_pixels"], strict=True))
    result["images"] = len(areas)
    result["empty_predictions"] = sum(not predicted and bool(true) for predicted, true in areas)
    result["empty_truths"] = sum(not true for _, true in areas)
    result["without_distance"] = sum(not predicted or not true for predicted, true in areas)
    return result
