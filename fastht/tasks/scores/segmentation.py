"""How well masks agree: Dice, IoU and surface distances by MONAI, image by image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

OVERLAPS = ("dice", "iou")
DISTANCES = ("hd95", "asd")
SCORES = (*OVERLAPS, *DISTANCES)
REFUSED = "refused: "
"""How an image's ``spacing`` begins if its file contradicts itself."""


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
    from monai.metrics import (  # which takes long to import
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_iou,
    )

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


def score_names(scores: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return which entries of all images are scores that count, as opposed to areas and the like.

    Those in millimetres count only where the spacing of an image is known.
    """
    names = [name for name in scores if name.split("@")[0].split("_")[0] in (*SCORES, "nsd")]
    known = any(spacing is not None for spacing in scores.get("row_spacing_mm", ()))
    return names if known else [name for name in names if not name.endswith("mm")]


def summarise(scores: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Return means and standard deviations over the images, and what they leave out.

    Args:
        scores: of all images, as :func:`image_scores` gives them; perhaps also as
            :func:`native.native_scores`, with ``row_spacing_mm``, ``None`` where it is not known,
            and ``spacing``, which says why.

    Returns:
        ``{score}`` and ``{score}_std`` for each score, distances over the images for which they
        are defined, those in millimetres over the images of known spacing and only if there are
        any; ``images``; ``empty_predictions``, of images whose true mask is not empty;
        ``empty_truths``; ``without_distance``, the images that ``hd95`` and ``asd`` leave out. With
        scores at the image's own size: the same counts there, ending in ``_native``;
        ``with_spacing``, the images of known spacing; ``spacing_refused``, those whose file
        contradicts itself.
    """
    result: dict[str, float] = {}
    for name in score_names(scores):
        values = torch.tensor(scores[name], dtype=torch.float64)
        defined = values[~values.isnan()]
        result[name] = defined.mean().item() if len(defined) else math.nan
        result[f"{name}_std"] = defined.std(correction=0).item() if len(defined) else math.nan
    result["images"] = len(scores["true_pixels"])
    for suffix in ("", "_native"):
        if f"true_pixels{suffix}" not in scores:
            continue
        sides = (scores[f"{side}_pixels{suffix}"] for side in ("predicted", "true"))
        areas = list(zip(*sides, strict=True))
        result |= {
            f"empty_predictions{suffix}": sum(not found and bool(true) for found, true in areas),
            f"empty_truths{suffix}": sum(not true for _, true in areas),
            f"without_distance{suffix}": sum(not found or not true for found, true in areas),
        }
    if "spacing" in scores:
        refused = sum(source.startswith(REFUSED) for source in scores["spacing"])
        known = sum(spacing is not None for spacing in scores["row_spacing_mm"])
        result |= {"with_spacing": known, "spacing_refused": refused}
    return result
